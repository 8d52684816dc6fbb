//! Reads safetensors and PyTorch checkpoints, memory-mapped, and nothing else.
