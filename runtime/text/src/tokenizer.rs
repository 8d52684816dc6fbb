//! The tokenizer of the text encoder.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{Encoding, PostProcessor, TruncationDirection};

use crate::{Error, charsmap, clean};

/// Most bytes of a prompt: far more than any encoder reads, and little enough for repairs that take many rounds.
pub const MAX_PROMPT_BYTES: usize = 128 << 10;

/// Most tokens of an encoder's input.
const MAX_TEXT_LEN: usize = 1 << 16;

/// A `tokenizer.json` (Hugging Face, Unigram with the post-processor of T5) and the length of the encoder's input.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    text_len: usize,
    pad: i64,
    eos: i64,
}

/// A prompt as the text encoder gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, `[text_len]`: the prompt's, `</s>`, then `<pad>`.
    pub ids: Vec<i64>,
    /// `[text_len]`: 1 for the prompt's tokens and its `</s>`, 0 for padding.
    pub mask: Vec<i64>,
    /// Tokens that are not padding, `</s>` included: the sum of the mask.
    pub tokens: usize,
    /// The prompt after cleaning: what was tokenised. Prompts that clean to the same text have the same embedding.
    pub cleaned: String,
    /// What did not fit.
    pub cut: Option<Cut>,
}

/// The end of a prompt that is longer than the encoder's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// How many tokens were cut off.
    pub tokens: usize,
    /// Their text, as in the cleaned prompt.
    pub text: String,
}

/// The parts of the file that are checked before the `tokenizers` crate gets it.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: ModelOutline,
}

#[derive(Deserialize)]
struct ModelOutline {
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; prompts are cut and padded to `text_len` tokens (Wan: 512). Truncation and padding
    /// that the file asks for are ignored.
    ///
    /// # Errors
    ///
    /// [`Error::TextLen`]; [`Error::Format`], [`Error::Model`], [`Error::MissingToken`], [`Error::Ending`] for a file
    /// that is damaged or of another model.
    pub fn from_bytes(json: &[u8], text_len: usize) -> Result<Self, Error> {
        if !(2..=MAX_TEXT_LEN).contains(&text_len) {
            return Err(Error::TextLen { found: text_len, most: MAX_TEXT_LEN });
        }
        let format = |reason: String| Error::Format { reason };
        let outline: Outline = serde_json::from_slice(json).map_err(|e| format(e.to_string()))?;
        if let Some(found) = outline.model.kind.filter(|kind| kind != "Unigram") {
            return Err(Error::Model { found });
        }
        charsmap::check(&outline.normalizer).map_err(format)?;
        check_template(&outline.post_processor).map_err(format)?;

        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(json)).map_err(format)?;
        inner.with_truncation(None).map_err(|e| format(e.to_string()))?;
        inner.with_padding(None);
        let id = |token| inner.token_to_id(token).map(i64::from).ok_or(Error::MissingToken { token });
        let (pad, eos) = (id("<pad>")?, id("</s>")?);
        let tokenizer = Self { inner, text_len, pad, eos };
        tokenizer.check_ending()?;
        Ok(tokenizer)
    }

    /// The id of `<pad>`.
    pub fn pad_id(&self) -> i64 {
        self.pad
    }

    /// The id of `</s>`, the last token of every text.
    pub fn eos_id(&self) -> i64 {
        self.eos
    }

    /// Number of token ids: the encoder's embedding needs at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Tokens of the encoder's input.
    pub fn text_len(&self) -> usize {
        self.text_len
    }

    /// Cleans and tokenises `prompt`. Of a prompt that is too long the first `text_len - 1` tokens and `</s>` remain,
    /// and [`Encoded::cut`] says what went.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyPrompt`] when cleaning leaves nothing; [`Error::PromptTooLong`] above [`MAX_PROMPT_BYTES`];
    /// [`Error::Encode`] when the tokenizer file is damaged in a way that only now shows.
    pub fn encode(&self, prompt: &str) -> Result<Encoded, Error> {
        if prompt.len() > MAX_PROMPT_BYTES {
            return Err(Error::PromptTooLong { found: prompt.len(), most: MAX_PROMPT_BYTES });
        }
        let cleaned = clean(prompt);
        if cleaned.is_empty() {
            return Err(Error::EmptyPrompt { cleaned: !prompt.is_empty() });
        }
        self.encode_cleaned(cleaned)
    }

    fn encode_cleaned(&self, cleaned: String) -> Result<Encoded, Error> {
        let (encoding, cut) = guarded(|| {
            let mut text = self.inner.encode(cleaned.as_str(), false)?;
            let cut = self.cut(&mut text, &cleaned);
            Ok((self.inner.post_process(text, None, true)?, cut))
        })
        .map_err(|reason| Error::Encode { reason })?;

        let mut ids: Vec<i64> = encoding.get_ids().iter().copied().map(i64::from).collect();
        let tokens = ids.len();
        if tokens > self.text_len {
            return Err(Error::Encode {
                reason: format!("{tokens} tokens after cutting to {}", self.text_len),
            });
        }
        ids.resize(self.text_len, self.pad);
        let mask = (0..self.text_len).map(|at| i64::from(at < tokens)).collect();
        Ok(Encoded { ids, mask, tokens, cleaned, cut })
    }

    /// Shortens `text` so that the tokens that the post-processor adds still fit.
    fn cut(&self, text: &mut Encoding, cleaned: &str) -> Option<Cut> {
        let added = self.inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        let keep = self.text_len.saturating_sub(added);
        let &(start, _) = text.get_offsets().get(keep)?;
        let tokens = text.len() - keep;
        text.truncate(keep, 0, TruncationDirection::Right);
        let start = cleaned.floor_char_boundary(start);
        Some(Cut { tokens, text: cleaned[start..].trim_start().to_owned() })
    }

    /// A tokenizer without `</s>` at the end would run, and give the encoder what it has never seen.
    fn check_ending(&self) -> Result<(), Error> {
        let probe =
            self.encode_cleaned("a".to_owned()).map_err(|e| Error::Format { reason: e.to_string() })?;
        let last = probe.tokens.checked_sub(1).and_then(|last| probe.ids.get(last).copied());
        if last == Some(self.eos) { Ok(()) } else { Err(Error::Ending { found: last, expected: self.eos }) }
    }
}

/// Checks that a template of the post-processor names no special token that it does not define.
fn check_template(processor: &Value) -> Result<(), String> {
    for inner in processor["processors"].as_array().into_iter().flatten() {
        check_template(inner)?;
    }
    let pieces =
        ["single", "pair"].into_iter().filter_map(|template| processor[template].as_array()).flatten();
    for id in pieces.filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
        if processor["special_tokens"].get(id).is_none() {
            return Err(format!(
                "post_processor: the template uses the special token '{id}', which is not defined"
            ));
        }
    }
    Ok(())
}

/// Runs code of the `tokenizers` crate, which panics on some inconsistent files.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            Err(format!("the tokenizer stopped: {text}"))
        }
    }
}

#[cfg(test)]
mod tests;
