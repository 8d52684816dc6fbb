//! Writes PyTorch files byte by byte, in the layout that `torch.save` uses, and files it never would.
#![allow(dead_code, reason = "each test binary uses a part")]

/// A pickle under construction. Methods are named after the instructions they write.
#[derive(Clone)]
pub struct Pickle {
    pub bytes: Vec<u8>,
    memo: u32,
}

impl Pickle {
    pub fn new(protocol: u8) -> Pickle {
        Pickle { bytes: vec![0x80, protocol], memo: 0 }
    }

    pub fn op(&mut self, ops: &[u8]) -> &mut Self {
        self.bytes.extend(ops);
        self
    }

    /// Remembers the top of the stack, as Python's pickler does after every object.
    pub fn put(&mut self) -> &mut Self {
        let index = self.memo;
        self.memo += 1;
        match u8::try_from(index) {
            Ok(index) => self.op(&[b'q', index]),
            Err(_) => self.op(b"r").op(&index.to_le_bytes()),
        }
    }

    pub fn text(&mut self, text: &str) -> &mut Self {
        self.bytes.push(b'X');
        self.bytes.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
        self.bytes.extend(text.as_bytes());
        self.put()
    }

    pub fn int(&mut self, value: i64) -> &mut Self {
        if let Ok(value) = u8::try_from(value) {
            self.op(&[b'K', value])
        } else if let Ok(value) = u16::try_from(value) {
            self.op(b"M").op(&value.to_le_bytes())
        } else if let Ok(value) = i32::try_from(value) {
            self.op(b"J").op(&value.to_le_bytes())
        } else {
            self.op(&[0x8a, 8]).op(&value.to_le_bytes())
        }
    }

    pub fn global(&mut self, module: &str, name: &str) -> &mut Self {
        self.bytes.extend(format!("c{module}\n{name}\n").bytes());
        self.put()
    }

    pub fn ordered_dict(&mut self) -> &mut Self {
        self.global("collections", "OrderedDict").op(b")R").put()
    }

    pub fn ints(&mut self, values: &[usize]) -> &mut Self {
        self.op(b"(");
        for &value in values {
            self.int(i64::try_from(value).unwrap());
        }
        self.op(b"t").put()
    }

    /// The persistent id of a storage, resolved.
    pub fn storage(&mut self, class: &str, key: &str, numel: i64) -> &mut Self {
        let (module, name) = class.rsplit_once('.').unwrap();
        self.op(b"(")
            .text("storage")
            .global(module, name)
            .text(key)
            .text("cpu")
            .int(numel)
            .op(b"t")
            .put()
            .op(b"Q")
    }

    pub fn tensor(&mut self, tensor: &Tensor) -> &mut Self {
        let version = if tensor.dtype.is_some() { "_rebuild_tensor_v3" } else { "_rebuild_tensor_v2" };
        self.global("torch._utils", version).op(b"(");
        self.storage(tensor.class, tensor.key, tensor.numel).int(tensor.offset);
        self.ints(&tensor.shape).ints(&tensor.strides).op(&[0x89]).ordered_dict();
        if let Some(dtype) = tensor.dtype {
            self.global("torch", dtype);
        }
        self.op(b"t").put().op(b"R").put()
    }

    /// A whole pickle of one dict whose values `write` adds, key by key.
    pub fn dict(write: impl FnOnce(&mut Pickle)) -> Vec<u8> {
        let mut pickle = Pickle::new(2);
        pickle.op(b"}").put().op(b"(");
        write(&mut pickle);
        pickle.op(b"u.");
        pickle.bytes
    }
}

#[derive(Clone, Debug)]
pub struct Tensor {
    pub class: &'static str,
    pub key: &'static str,
    pub numel: i64,
    pub offset: i64,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
    /// Set for what `_rebuild_tensor_v3` writes.
    pub dtype: Option<&'static str>,
}

impl Tensor {
    /// A tensor that is all of its storage.
    pub fn whole(class: &'static str, key: &'static str, shape: &[usize]) -> Tensor {
        let numel = shape.iter().product::<usize>() as i64;
        Tensor { class, key, numel, offset: 0, shape: shape.to_vec(), strides: row_major(shape), dtype: None }
    }
}

pub fn row_major(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

/// One entry of a ZIP.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub data: Vec<u8>,
    pub method: u16,
    pub flags: u16,
}

impl Entry {
    pub fn new(name: &str, data: &[u8]) -> Entry {
        Entry { name: name.to_owned(), data: data.to_vec(), method: 0, flags: 0x808 }
    }
}

/// The entries of a checkpoint in torch's order, under a folder of this name.
pub fn torch_entries(folder: &str, pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<Entry> {
    let mut entries = vec![Entry::new("data.pkl", pickle), Entry::new("byteorder", b"little")];
    entries.extend(storages.iter().map(|(key, data)| Entry::new(&format!("data/{key}"), data)));
    entries.push(Entry::new("version", b"3\n"));
    for entry in &mut entries {
        entry.name = format!("{folder}/{}", entry.name);
    }
    entries
}

pub fn torch_file(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    zip(&torch_entries("archive", pickle, storages))
}

/// A ZIP as torch writes it: lengths of an entry are known only behind it (flag 8), and an extra field pads the
/// data to 64 bytes. Checksums are left out, as `torch.serialization.set_crc32_options(False)` does.
pub fn zip(entries: &[Entry]) -> Vec<u8> {
    let mut file = vec![];
    let mut directory = vec![];
    for entry in entries {
        let offset = u32::try_from(file.len()).unwrap();
        let padding = 63 - (file.len() + 30 + entry.name.len() + 4 + 63) % 64;
        let name_len = u16::try_from(entry.name.len()).unwrap().to_le_bytes();
        let size = u32::try_from(entry.data.len()).unwrap().to_le_bytes();
        let fixed = [entry.flags, entry.method, 0, 0].map(u16::to_le_bytes).concat();

        file.extend(b"PK\x03\x04\x14\0");
        file.extend(&fixed);
        file.extend([0; 12]);
        file.extend(name_len);
        file.extend(u16::try_from(padding + 4).unwrap().to_le_bytes());
        file.extend(entry.name.bytes());
        file.extend(b"FB");
        file.extend(u16::try_from(padding).unwrap().to_le_bytes());
        file.extend(std::iter::repeat_n(b'Z', padding));
        file.extend(&entry.data);
        file.extend(b"PK\x07\x08\0\0\0\0");
        file.extend([size, size].concat());

        directory.extend(b"PK\x01\x02\x14\0\x14\0");
        directory.extend(&fixed);
        directory.extend([0; 4]);
        directory.extend([size, size].concat());
        directory.extend(name_len);
        directory.extend([0; 12]);
        directory.extend(offset.to_le_bytes());
        directory.extend(entry.name.bytes());
    }
    let begin = u32::try_from(file.len()).unwrap();
    let count = u16::try_from(entries.len()).unwrap().to_le_bytes();
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count, count].concat());
    file.extend(u32::try_from(directory.len()).unwrap().to_le_bytes());
    file.extend(begin.to_le_bytes());
    file.extend([0; 2]);
    file
}

/// A safetensors file with this header and data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    file
}
