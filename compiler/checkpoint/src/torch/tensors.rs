//! From the objects of a pickle to named tensors.

use std::collections::HashSet;
use std::fmt::Write;

use super::TorchError;
use super::globals::ElementType;
use super::pickle::{Object, Objects, Tensor, Value};
use crate::DType;
use crate::dtype::element_count;

/// Keys under which training code puts the state dict, beside step counts and optimizer state.
const WRAPPERS: [&str; 5] = ["state_dict", "model", "module", "model_state", "model_state_dict"];
/// Dicts within dicts.
pub(super) const MAX_DEPTH: usize = 64;
/// Entries of all dicts, counted once per way to reach them: shared dicts can multiply.
pub(super) const MAX_ENTRIES: usize = 1 << 20;
/// Bytes of all names.
pub(super) const MAX_NAME_BYTES: usize = 1 << 26;

/// What a pickle holds.
#[derive(Debug, Default)]
pub struct Pickle {
    /// Tensors, in the order of the state dict.
    pub tensors: Vec<PickledTensor>,
    /// Names of what is kept out: numbers, text, and everything beside a wrapped state dict.
    pub ignored: Vec<String>,
}

/// A tensor of a pickle. The bytes from `offset` to `offset + span` of its storage hold all its elements.
#[derive(Debug)]
pub struct PickledTensor {
    /// Keys from the state dict to the tensor, joined by dots.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Lengths of the axes, outermost first.
    pub shape: Vec<usize>,
    /// Distance in elements per axis; `None` when row-major without gaps.
    pub strides: Option<Vec<usize>>,
    /// Name of the storage under `data/` of the archive.
    pub storage: String,
    /// Bytes that the storage must have.
    pub storage_len: usize,
    /// Byte position of the first element in the storage.
    pub offset: usize,
    /// Bytes from the first byte of the first element to the last byte of the one furthest behind it.
    pub span: usize,
}

/// Collects the tensors below `root`.
pub(super) fn collect(objects: &Objects<'_>, root: Value<'_>) -> Result<Pickle, TorchError> {
    let mut walk =
        Walk { objects, pickle: Pickle::default(), prefix: String::new(), entries: 0, name_bytes: 0 };
    let state_dict = walk.unwrap(root)?;
    for &(key, value) in state_dict {
        walk.enter(key, value, 0, true)?;
    }
    let mut seen = HashSet::new();
    if let Some(twice) = walk.pickle.tensors.iter().find(|tensor| !seen.insert(tensor.name.as_str())) {
        return Err(TorchError::DuplicateName { tensor: twice.name.clone() });
    }
    Ok(walk.pickle)
}

type Items<'p> = [(Value<'p>, Value<'p>)];

struct Walk<'o, 'p> {
    objects: &'o Objects<'p>,
    pickle: Pickle,
    prefix: String,
    entries: usize,
    name_bytes: usize,
}

impl<'o, 'p> Walk<'o, 'p> {
    /// Descends from the root into the state dict, as long as exactly one entry looks like one. What lies
    /// beside it (optimizer state, averaged weights, counters) becomes ignored.
    fn unwrap(&mut self, root: Value<'p>) -> Result<&'o Items<'p>, TorchError> {
        let mut dict = self.dict(root).ok_or_else(|| TorchError::NotADict { found: self.describe(root) })?;
        for _ in 0..MAX_DEPTH {
            let inner = {
                let mut wrapped = dict.iter().filter_map(|&(key, value)| match key {
                    Value::Text(key) if WRAPPERS.contains(&key) => self.dict(value).map(|inner| (key, inner)),
                    _ => None,
                });
                match (wrapped.next(), wrapped.next()) {
                    (Some(one), None) if !dict.iter().any(|&(_, value)| self.is_tensor(value)) => one,
                    _ => break,
                }
            };
            for &(key, value) in dict {
                if !matches!(key, Value::Text(key) if key == inner.0) {
                    self.enter(key, value, 0, false)?;
                }
            }
            let outer = self.prefix.len();
            if outer == 0 {
                self.prefix.push_str(inner.0)
            } else {
                write_joined(&mut self.prefix, inner.0)
            }
            dict = inner.1;
        }
        self.prefix.clear();
        Ok(dict)
    }

    /// Takes one entry of a container: a tensor, a container of more, or something to ignore.
    fn enter(
        &mut self,
        key: Value<'p>,
        value: Value<'p>,
        depth: usize,
        keep: bool,
    ) -> Result<(), TorchError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(TorchError::TooManyEntries);
        }
        if depth >= MAX_DEPTH {
            return Err(TorchError::TooDeep);
        }
        let outer = self.prefix.len();
        if outer > 0 {
            self.prefix.push('.');
        }
        match key {
            Value::Text(key) => self.prefix.push_str(key),
            // Writing to a string cannot fail.
            Value::Int(key) => drop(write!(self.prefix, "{key}")),
            key => return Err(TorchError::Key { prefix: self.prefix.clone(), found: self.describe(key) }),
        }
        self.take(value, depth, keep)?;
        self.prefix.truncate(outer);
        Ok(())
    }

    fn take(&mut self, value: Value<'p>, depth: usize, keep: bool) -> Result<(), TorchError> {
        let objects = self.objects;
        match value {
            Value::Object(index) => match &objects[index] {
                Object::Dict(items) => {
                    for &(key, value) in items {
                        self.enter(key, value, depth + 1, keep)?;
                    }
                    return Ok(());
                }
                Object::List(items) | Object::Tuple(items) => {
                    for (index, &item) in (0..).zip(items) {
                        self.enter(Value::Int(index), item, depth + 1, keep)?;
                    }
                    return Ok(());
                }
                Object::Tensor(tensor) if keep => {
                    self.count_name()?;
                    let tensor = check(self.prefix.clone(), tensor)?;
                    self.pickle.tensors.push(tensor);
                    return Ok(());
                }
                Object::Tensor(_) | Object::Storage(_) => {}
            },
            Value::Other | Value::Bool | Value::Int(_) | Value::Text(_) | Value::Global(_) => {}
        }
        self.count_name()?;
        self.pickle.ignored.push(self.prefix.clone());
        Ok(())
    }

    fn count_name(&mut self) -> Result<(), TorchError> {
        self.name_bytes += self.prefix.len();
        if self.name_bytes > MAX_NAME_BYTES { Err(TorchError::TooManyEntries) } else { Ok(()) }
    }

    fn dict(&self, value: Value<'p>) -> Option<&'o Items<'p>> {
        match value {
            Value::Object(index) => match &self.objects[index] {
                Object::Dict(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    fn is_tensor(&self, value: Value<'p>) -> bool {
        matches!(value, Value::Object(index) if matches!(self.objects[index], Object::Tensor(_)))
    }

    fn describe(&self, value: Value<'p>) -> &'static str {
        match value {
            Value::Other => "None, a float or bytes",
            Value::Bool => "a bool",
            Value::Int(_) => "an integer",
            Value::Text(_) => "text",
            Value::Global(_) => "a class or function",
            Value::Object(index) => match self.objects[index] {
                Object::Tuple(_) => "a tuple",
                Object::List(_) => "a list",
                Object::Dict(_) => "a dict",
                Object::Storage(_) => "a storage",
                Object::Tensor(_) => "a tensor",
            },
        }
    }
}

/// Checks a tensor against what its pickle says about its storage.
fn check(name: String, tensor: &Tensor<'_>) -> Result<PickledTensor, TorchError> {
    let Tensor { storage, element, offset, shape, strides } = tensor;
    let unsupported = |found| TorchError::UnsupportedDtype { tensor: name.clone(), found };
    let dtype = match *element {
        ElementType::Known(dtype) => dtype,
        ElementType::Unsupported(found) => return Err(unsupported(found)),
        ElementType::Untyped => return Err(unsupported("untyped bytes")),
    };
    let size = match storage.element {
        ElementType::Unsupported(found) => return Err(unsupported(found)),
        known => known.size().unwrap_or(1),
    };

    let layout = || {
        let storage_len = storage.numel.checked_mul(size)?;
        let elements = element_count(shape)?;
        if elements == 0 {
            return Some((storage_len, 0, 0, 0));
        }
        let last = shape
            .iter()
            .zip(strides)
            .try_fold(0usize, |last, (&len, &stride)| last.checked_add((len - 1).checked_mul(stride)?))?;
        let first = offset.checked_mul(dtype.size())?;
        let span = last.checked_add(1)?.checked_mul(dtype.size())?;
        (first.checked_add(span)? <= storage_len).then_some((storage_len, elements, first, span))
    };
    let Some((storage_len, elements, first, span)) = layout() else {
        return Err(TorchError::OutsideStorage {
            tensor: name,
            offset: *offset,
            shape: shape.clone(),
            strides: strides.clone(),
            numel: storage.numel,
        });
    };
    // Elements shared between indices would make a small file ask for a large gather.
    if elements.checked_mul(dtype.size()).is_none_or(|bytes| bytes > storage_len) {
        return Err(TorchError::Expanded { tensor: name, shape: shape.clone(), numel: storage.numel });
    }
    let strides = (elements > 0 && !is_row_major(shape, strides)).then(|| strides.clone());
    Ok(PickledTensor {
        name,
        dtype,
        shape: shape.clone(),
        strides,
        storage: storage.key.to_owned(),
        storage_len,
        offset: first,
        span,
    })
}

/// Whether the strides are those of a tensor without gaps. The stride of an axis of length 1 means nothing.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&len, &stride)| {
        let fits = len == 1 || stride == expected;
        expected *= len;
        fits
    })
}

fn write_joined(prefix: &mut String, key: &str) {
    prefix.push('.');
    prefix.push_str(key);
}
