//! The safetensors header: what it accepts covers the file exactly, and the format's own library agrees.
#![no_main]

use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;
use turbo_checkpoint::safetensors::parse_header;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = parse_header(file) else { return };
    let mut end = header.tensors.first().map_or(file.len(), |tensor| tensor.bytes.start);
    for tensor in &header.tensors {
        assert_eq!(tensor.bytes.start, end);
        end = tensor.bytes.end;
    }
    assert_eq!(end, file.len());

    let theirs = SafeTensors::deserialize(file).expect("what is accepted here is valid");
    assert_eq!(theirs.len(), header.tensors.len());
    for tensor in header.tensors {
        let view = theirs.tensor(&tensor.name).expect("the same names");
        assert_eq!((view.shape(), view.data()), (&tensor.shape[..], &file[tensor.bytes]));
    }
});
