//! From a prompt to the token ids of the text encoder, exactly as the reference does it.
//!
//! ```text
//! prompt -> ftfy -> HTML entities twice -> white space -> Unigram tokens -> cut and padded to text_len
//! ```
//!
//! The meaning is that of TurboDiffusion's `rcm/utils/umt5.py` (`HuggingfaceTokenizer`, `basic_clean`,
//! `whitespace_clean`), which rests on Python's `ftfy`, `html` and `regex` packages.

mod charsmap;
mod clean;
mod error;
mod ftfy;
mod html;
mod tokenizer;

pub use clean::clean;
pub use error::Error;
pub use tokenizer::{Cut, Encoded, MAX_PROMPT_BYTES, Tokenizer};
