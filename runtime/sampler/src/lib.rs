//! The rCM sampler and its noise.
