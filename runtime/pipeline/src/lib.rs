//! Engine file and prompt to frames.
