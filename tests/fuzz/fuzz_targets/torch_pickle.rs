//! The pickle of a PyTorch checkpoint: whatever it holds, tensors lie inside the storages they name.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use turbo_checkpoint::torch::parse_pickle;

fuzz_target!(|pickle: &[u8]| {
    let Ok(pickle) = parse_pickle(pickle) else { return };
    let mut names = HashSet::new();
    for tensor in pickle.tensors {
        let elements: usize = tensor.shape.iter().product();
        assert!(tensor.offset + tensor.span <= tensor.storage_len);
        assert!(elements * tensor.dtype.size() <= tensor.storage_len);
        match tensor.strides {
            None => assert_eq!(tensor.span, elements * tensor.dtype.size()),
            Some(strides) => {
                let last: usize =
                    tensor.shape.iter().zip(&strides).map(|(len, stride)| (len - 1) * stride).sum();
                assert_eq!(tensor.span, (last + 1) * tensor.dtype.size());
            }
        }
        assert!(names.insert(tensor.name));
    }
});
