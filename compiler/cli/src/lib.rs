//! Checkpoint to engine file: the command turbo-compile.
