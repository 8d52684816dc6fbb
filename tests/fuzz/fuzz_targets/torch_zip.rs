//! A whole PyTorch file: tensors lie inside it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use turbo_checkpoint::torch::parse_file;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = parse_file(bytes) else { return };
    for (tensor, range) in file.tensors {
        assert_eq!(range.len(), tensor.span);
        assert!(range.end <= bytes.len());
    }
});
