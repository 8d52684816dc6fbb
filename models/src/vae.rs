//! The Wan 2.1 VAE.
