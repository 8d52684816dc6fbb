//! Writes graphs as ONNX files with external data.
