//! What can go wrong between a prompt and its ids.

/// An error of the tokenizer file or of a prompt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tokenizer file is not the JSON of a Hugging Face tokenizer.
    #[error("tokenizer.json: {reason}; expected the fast tokenizer of umT5, as in google/umt5-xxl")]
    Format {
        /// What the parser said.
        reason: String,
    },
    /// The tokenizer is of another kind than the text encoder was trained with.
    #[error("tokenizer.json: model type '{found}': expected 'Unigram', the kind of umT5")]
    Model {
        /// The type named in the file.
        found: String,
    },
    /// The tokenizer has no token that the encoder's input needs.
    #[error("tokenizer.json: no token '{token}': expected the special tokens of T5, <pad> and </s>")]
    MissingToken {
        /// The missing token.
        token: &'static str,
    },
    /// The tokenizer does not end a text with `</s>`.
    #[error(
        "tokenizer.json: a text ends with token {found:?}: expected </s> ({expected}); the post-processor of T5 is \
         missing"
    )]
    Ending {
        /// Last id of an encoded text.
        found: Option<i64>,
        /// Id of `</s>`.
        expected: i64,
    },
    /// The length of the encoder's input leaves no room for text.
    #[error("text length {found}: expected 2 to {most} tokens (umT5 in Wan: 512)")]
    TextLen {
        /// The length asked for.
        found: usize,
        /// Most tokens.
        most: usize,
    },
    /// Nothing is left of the prompt.
    #[error("the prompt is empty{}; describe the video in a sentence or more", if *.cleaned { " once cleaned" } else { "" })]
    EmptyPrompt {
        /// Whether the prompt held characters (white space, control characters) that cleaning removed.
        cleaned: bool,
    },
    /// The prompt is so long that it is likely something else.
    #[error(
        "the prompt has {found} bytes: expected at most {most}; the text encoder reads some hundred tokens, so check \
         that this is a prompt and not another file"
    )]
    PromptTooLong {
        /// Bytes of the prompt.
        found: usize,
        /// Most bytes.
        most: usize,
    },
    /// The tokenizer failed on this prompt.
    #[error("cannot tokenise the prompt: {reason}; the tokenizer.json is likely damaged")]
    Encode {
        /// What the tokenizer said.
        reason: String,
    },
}
