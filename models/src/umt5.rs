//! The umT5 text encoder.
