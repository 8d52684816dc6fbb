//! The safetensors header.
//!
//! The format (huggingface/safetensors, README, "Format"): eight bytes that hold the length of a JSON object
//! as little-endian `u64`; the object, from each tensor's name to its dtype, shape and byte range; then the
//! bytes, without gaps. The `safetensors` crate reads it too, but lets the last of two equal names win and
//! does not say which tensor is wrong by how much, so the header is read here; the tests hold the two against
//! each other.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::DType;
use crate::dtype::element_count;
use crate::tensor::MAX_RANK;

/// Longest header that is read, in bytes; the limit of the format's own library.
pub const MAX_HEADER_LEN: u64 = 100_000_000;

/// Bytes of the length in front of the header.
const PREFIX_LEN: usize = 8;

/// A checked header.
#[derive(Debug, Default)]
pub struct Header {
    /// Tensors in the order of their bytes.
    pub tensors: Vec<HeaderTensor>,
    /// The `__metadata__` object.
    pub metadata: BTreeMap<String, String>,
}

/// One tensor of a header. Its `bytes` are inside the file and as long as dtype and shape say.
#[derive(Debug)]
pub struct HeaderTensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Lengths of the axes, outermost first.
    pub shape: Vec<usize>,
    /// Position of the elements in the file.
    pub bytes: Range<usize>,
}

/// What is wrong with a safetensors file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Shorter than the length field.
    #[error("file is {len} bytes long, expected at least 8; hint: fetch it again")]
    TooShort {
        /// Length of the file.
        len: usize,
    },
    /// The length field promises more than [`MAX_HEADER_LEN`].
    #[error(
        "header length is {declared}, expected at most {MAX_HEADER_LEN}; \
         hint: the file is damaged or not safetensors"
    )]
    HeaderTooLong {
        /// Value of the length field.
        declared: u64,
    },
    /// The file ends inside the header.
    #[error(
        "header of {declared} bytes expected, found {available} after the length; \
         hint: the file is truncated, fetch it again"
    )]
    HeaderTruncated {
        /// Value of the length field.
        declared: u64,
        /// Bytes behind the length field.
        available: usize,
    },
    /// The header is not text.
    #[error("header is not UTF-8 at byte {at}")]
    NotUtf8 {
        /// Position in the file.
        at: usize,
    },
    /// The header is not the JSON that the format asks for.
    #[error("header is not valid: {reason}")]
    Json {
        /// What the JSON reader said, with line and column of the header.
        reason: String,
    },
    /// A name appears twice.
    #[error("tensor {tensor:?} appears twice in the header")]
    DuplicateName {
        /// The name.
        tensor: String,
    },
    /// A metadata key appears twice.
    #[error("metadata key {key:?} appears twice in the header")]
    DuplicateMetadata {
        /// The key.
        key: String,
    },
    /// An element type that this crate does not read.
    #[error(
        "tensor {tensor:?} has type {found:?}, \
         expected F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, I16, I8, U8 or BOOL"
    )]
    UnsupportedDtype {
        /// The tensor.
        tensor: String,
        /// Its type in the header.
        found: String,
    },
    /// Too many axes.
    #[error("tensor {tensor:?} has {rank} axes, expected at most {MAX_RANK}")]
    Rank {
        /// The tensor.
        tensor: String,
        /// Number of axes.
        rank: usize,
    },
    /// The shape describes more bytes than a number can count.
    #[error("tensor {tensor:?} with type {dtype} and shape {shape:?} is too large to address")]
    ShapeOverflow {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: DType,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The range ends before it begins.
    #[error("tensor {tensor:?} has data_offsets [{begin}, {end}], which end before they begin")]
    Reversed {
        /// The tensor.
        tensor: String,
        /// First offset.
        begin: usize,
        /// Second offset.
        end: usize,
    },
    /// Shape and range disagree.
    #[error(
        "tensor {tensor:?} with type {dtype} and shape {shape:?} needs {expected} bytes, \
         its data_offsets hold {found}"
    )]
    ByteCount {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: DType,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that type and shape need.
        expected: usize,
        /// Bytes of the range.
        found: usize,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap: one ends at {end} and the other begins at {begin}")]
    Overlap {
        /// The tensor in front.
        first: String,
        /// The one behind it.
        second: String,
        /// End of the first.
        end: usize,
        /// Begin of the second.
        begin: usize,
    },
    /// Bytes that belong to no tensor.
    #[error(
        "{} bytes in front of tensor {tensor:?} belong to no tensor: \
         expected it at {expected}, found it at {found}",
        found - expected
    )]
    Hole {
        /// The tensor behind the hole.
        tensor: String,
        /// Where the tensor before it ends.
        expected: usize,
        /// Where this tensor begins.
        found: usize,
    },
    /// The file ends before the tensors do.
    #[error(
        "tensor {tensor:?} ends at byte {expected} of the data, found {found} bytes of data; \
         hint: the file is truncated, fetch it again"
    )]
    DataTruncated {
        /// The tensor.
        tensor: String,
        /// Where it ends.
        expected: usize,
        /// Bytes behind the header.
        found: usize,
    },
    /// Bytes behind the last tensor.
    #[error("{extra} bytes behind the last tensor belong to no tensor")]
    Trailing {
        /// How many.
        extra: usize,
    },
}

/// Reads and checks the header of a whole file.
///
/// Everything is checked but the elements: with `Ok`, every tensor lies inside the file, no two overlap, and
/// no byte of the data is left over.
///
/// # Errors
/// [`HeaderError`], naming the tensor where there is one.
pub fn parse_header(file: &[u8]) -> Result<Header, HeaderError> {
    let (prefix, rest) =
        file.split_first_chunk::<PREFIX_LEN>().ok_or(HeaderError::TooShort { len: file.len() })?;
    let declared = u64::from_le_bytes(*prefix);
    if declared > MAX_HEADER_LEN {
        return Err(HeaderError::HeaderTooLong { declared });
    }
    let truncated = HeaderError::HeaderTruncated { declared, available: rest.len() };
    let header_len = usize::try_from(declared).ok().filter(|&len| len <= rest.len()).ok_or(truncated)?;
    let (header, data) = rest.split_at(header_len);

    let text = std::str::from_utf8(header)
        .map_err(|error| HeaderError::NotUtf8 { at: PREFIX_LEN + error.valid_up_to() })?;
    let raw: RawHeader =
        serde_json::from_str(text).map_err(|error| HeaderError::Json { reason: error.to_string() })?;

    let mut metadata = BTreeMap::new();
    for (key, value) in raw.metadata {
        if let Some(key) = metadata.insert(key.clone(), value).map(|_| key) {
            return Err(HeaderError::DuplicateMetadata { key });
        }
    }
    let mut tensors = raw
        .tensors
        .into_iter()
        .map(|(name, raw)| check_tensor(name, raw, data.len()))
        .collect::<Result<Vec<_>, _>>()?;
    check_names(&tensors)?;
    tensors.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    check_layout(&tensors, data.len())?;
    for tensor in &mut tensors {
        let begin = PREFIX_LEN + header_len;
        tensor.bytes = begin + tensor.bytes.start..begin + tensor.bytes.end;
    }
    Ok(Header { tensors, metadata })
}

/// Checks what one tensor says about itself. Its range still counts from the end of the header.
fn check_tensor(tensor: String, raw: RawTensor, data_len: usize) -> Result<HeaderTensor, HeaderError> {
    let Some(dtype) = DType::from_name(&raw.dtype) else {
        return Err(HeaderError::UnsupportedDtype { tensor, found: raw.dtype });
    };
    let shape = raw.shape;
    if shape.len() > MAX_RANK {
        return Err(HeaderError::Rank { tensor, rank: shape.len() });
    }
    let (begin, end) = raw.data_offsets;
    let Some(found) = end.checked_sub(begin) else {
        return Err(HeaderError::Reversed { tensor, begin, end });
    };
    let Some(expected) = element_count(&shape).and_then(|n| n.checked_mul(dtype.size())) else {
        return Err(HeaderError::ShapeOverflow { tensor, dtype, shape });
    };
    if found != expected {
        return Err(HeaderError::ByteCount { tensor, dtype, shape, expected, found });
    }
    if end > data_len {
        return Err(HeaderError::DataTruncated { tensor, expected: end, found: data_len });
    }
    Ok(HeaderTensor { name: tensor, dtype, shape, bytes: begin..end })
}

fn check_names(tensors: &[HeaderTensor]) -> Result<(), HeaderError> {
    let mut seen = HashSet::with_capacity(tensors.len());
    match tensors.iter().find(|tensor| !seen.insert(tensor.name.as_str())) {
        Some(twice) => Err(HeaderError::DuplicateName { tensor: twice.name.clone() }),
        None => Ok(()),
    }
}

/// Checks that sorted tensors cover the data from its first to its last byte.
fn check_layout(tensors: &[HeaderTensor], data_len: usize) -> Result<(), HeaderError> {
    let mut end = 0;
    let mut previous = "";
    for HeaderTensor { name, bytes, .. } in tensors {
        if bytes.start < end {
            let (first, second) = (previous.to_owned(), name.clone());
            return Err(HeaderError::Overlap { first, second, end, begin: bytes.start });
        }
        if bytes.start > end {
            return Err(HeaderError::Hole { tensor: name.clone(), expected: end, found: bytes.start });
        }
        (end, previous) = (bytes.end, name);
    }
    if end < data_len {
        return Err(HeaderError::Trailing { extra: data_len - end });
    }
    Ok(())
}

/// The header as JSON says it, with repeated names kept apart so that they can be reported.
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { tensors: vec![], metadata: vec![] };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata.extend(map.next_value::<Pairs<String>>()?.0);
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// The members of a JSON object in the order of the text, repeated keys included.
pub(crate) struct Pairs<V>(pub(crate) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<V>(std::marker::PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for PairsVisitor<V> {
            type Value = Pairs<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
                let mut pairs = vec![];
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor(std::marker::PhantomData))
    }
}
