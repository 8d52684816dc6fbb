//! Reads a manifest and checks it: schema number first, then fields, then what they say about one another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};

use serde::Deserialize;

use crate::error::{Error, Result, clip};
use crate::manifest::*;
use crate::{MANIFEST, SCHEMA, name};

/// No tensor of a real model comes near to this: 1 TiB.
const MAX_TENSOR_BYTES: u64 = 1 << 40;
/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;
/// Longest name in bytes.
const MAX_TEXT: usize = 256;
/// Longest licence in bytes: licences may be given as text.
const MAX_LICENCE: usize = 64 << 10;

/// Reads `manifest.json` and checks it (see [`Manifest::check`]).
///
/// # Errors
/// [`Error::NewerSchema`] and [`Error::OlderSchema`] before any other field is looked at, then
/// [`Error::ManifestSyntax`], then [`Error::Manifest`].
pub fn parse_manifest(json: &[u8]) -> Result<Manifest> {
    /// What manifests of every schema have.
    #[derive(Deserialize)]
    struct Head {
        schema: u64,
        #[serde(default)]
        created_by: serde_json::Value,
    }
    let Head { schema, created_by } = decode(json)?;
    if schema != u64::from(SCHEMA) {
        let text = |key| created_by.get(key).and_then(|value| value.as_str()).map(clip);
        let mut made_by = text("name").unwrap_or("an unknown program".into());
        if let Some(version) = text("version") {
            made_by = format!("{made_by} {version}");
        }
        return Err(if schema > u64::from(SCHEMA) {
            Error::NewerSchema { found: schema, made_by }
        } else {
            Error::OlderSchema { found: schema, made_by }
        });
    }
    let manifest: Manifest = decode(json)?;
    manifest.check()?;
    Ok(manifest)
}

fn decode<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "top level".into() } else { clip(path) };
        Error::ManifestSyntax { field, message: clip(error.inner()) }
    })?;
    reader.end().map_err(|error| Error::ManifestSyntax { field: "end".into(), message: clip(error) })?;
    Ok(value)
}

/// An error unless `ok`.
fn require(ok: bool, field: &str, expected: impl Display, found: impl Debug) -> Result<()> {
    if ok {
        return Ok(());
    }
    let found = clip(format!("{found:?}"));
    Err(Error::Manifest { field: field.into(), expected: expected.to_string(), found })
}

fn text(field: &str, text: &str, max: usize) -> Result<()> {
    let short = !text.is_empty() && text.len() <= max;
    require(short, field, format!("1 to {max} bytes of text"), text)?;
    let clean = text.chars().all(|c| !c.is_control() || c == '\n');
    require(clean, field, "text without control characters", text)
}

fn positive(field: &str, number: impl Into<u64>) -> Result<()> {
    let number = number.into();
    require(number > 0, field, "a positive number", number)
}

fn sha256(field: &str, digest: &str) -> Result<()> {
    let hex = digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    require(hex, field, "64 lower-case hexadecimal digits", digest)
}

fn tensor(field: &str, dtype: DType, shape: &[u64]) -> Result<()> {
    let field = &format!("{field}.shape");
    require(shape.len() <= MAX_RANK, field, format!("at most {MAX_RANK} dimensions"), shape)?;
    require(shape.iter().all(|&dim| dim > 0), field, "positive dimensions", shape)?;
    let bytes = shape.iter().try_fold(dtype.bytes(), |bytes, &dim| bytes.checked_mul(dim));
    require(bytes.is_some_and(|bytes| bytes <= MAX_TENSOR_BYTES), field, "a tensor of at most 1 TiB", shape)
}

/// Names that must not repeat.
#[derive(Default)]
struct Unique<'a>(BTreeSet<&'a str>);

impl<'a> Unique<'a> {
    fn add(&mut self, field: &str, name: &'a str) -> Result<()> {
        text(field, name, MAX_TEXT)?;
        require(self.0.insert(name), field, "a name that is not in use already", name)
    }
}

/// The videos that the stages of each name serve; none listed where one stage serves all.
#[derive(Default)]
struct Served<'a>(BTreeMap<&'a str, Option<BTreeSet<u32>>>);

impl<'a> Served<'a> {
    fn add(&mut self, field: &str, stage: &'a Stage) -> Result<()> {
        text(field, &stage.name, MAX_TEXT)?;
        let fresh = match (self.0.get_mut(stage.name.as_str()), stage.video) {
            (None, only) => {
                self.0.insert(&stage.name, only.map(|video| BTreeSet::from([video])));
                true
            }
            (Some(Some(videos)), Some(video)) => videos.insert(video),
            _ => false,
        };
        require(fresh, field, "a name that no other stage of the same video has", &stage.name)
    }

    /// An error unless each of the first `videos` videos has a stage of that name.
    fn everywhere(&self, field: &str, name: &str, videos: usize) -> Result<()> {
        let Some(served) = self.0.get(name) else {
            return require(false, field, "the name of a stage", name);
        };
        let Some(served) = served else { return Ok(()) };
        match (0..).take(videos).find(|video| !served.contains(video)) {
            Some(video) => {
                require(false, field, format!("the name of a stage that serves videos[{video}]"), name)
            }
            None => Ok(()),
        }
    }
}

/// Type and shape of a state, for one video or for every one.
type Forms<'a> = BTreeMap<Option<u32>, (DType, &'a [u64])>;

impl Manifest {
    /// Checks every field and what the fields say about one another: entries that stages refer to exist, shapes
    /// are positive and of a sane size, latents fit their videos, names are unique, paths relative and clean, and each
    /// video has its stages.
    ///
    /// # Errors
    /// [`Error::Manifest`] for the first field that does not fit.
    pub fn check(&self) -> Result<()> {
        require(self.schema == SCHEMA, "schema", SCHEMA, self.schema)?;
        text("created_by.name", &self.created_by.name, MAX_TEXT)?;
        text("created_by.version", &self.created_by.version, MAX_TEXT)?;
        let min_version = &self.backend.min_version;
        let plain = major_minor(min_version).is_some_and(|(a, b)| format!("{a}.{b}") == *min_version);
        require(plain, "backend.min_version", "MAJOR.MINOR", min_version)?;
        self.check_gpu()?;
        let mut ops = Unique::default();
        for (i, op) in self.ops.iter().enumerate() {
            ops.add(&format!("ops[{i}].name"), &op.name)?;
            text(&format!("ops[{i}].version"), &op.version, MAX_TEXT)?;
        }
        self.check_model()?;
        self.check_videos()?;
        self.check_recipe()?;
        self.check_sampling()?;
        self.check_entries()?;
        self.check_stages()?;
        for (i, source) in self.sources.iter().enumerate() {
            text(&format!("sources[{i}].name"), &source.name, MAX_TEXT)?;
            let bare = !source.name.contains(['/', '\\']);
            require(bare, &format!("sources[{i}].name"), "a file name without folders", &source.name)?;
            sha256(&format!("sources[{i}].sha256"), &source.sha256)?;
        }
        match &self.licence {
            Some(licence) => text("licence", licence, MAX_LICENCE),
            None => Ok(()),
        }
    }

    fn check_gpu(&self) -> Result<()> {
        let needed = self.backend.kind == BackendKind::TensorRt;
        let gpu = &self.backend.gpu;
        let expected = if needed { "the GPU of the plans" } else { "none, because no GPU is used" };
        require(gpu.is_some() == needed, "backend.gpu", expected, gpu)?;
        let Some(gpu) = gpu else { return Ok(()) };
        text("backend.gpu.name", &gpu.name, MAX_TEXT)?;
        // Written as numbers are, so that versions can be compared as text.
        let plain = |part: &str| part.parse::<u32>().is_ok_and(|number| number.to_string() == part);
        for (field, version, parts) in
            [("backend.gpu.tensorrt", &gpu.tensorrt, 3), ("backend.gpu.cuda", &gpu.cuda, 2)]
        {
            let whole = version.split('.').count() == parts && version.split('.').all(plain);
            require(whole, field, format!("{parts} numbers joined by dots"), version)?;
        }
        Ok(())
    }

    fn check_model(&self) -> Result<()> {
        let model = &self.model;
        for (field, value) in [
            ("model.dim", model.dim),
            ("model.heads", model.heads),
            ("model.layers", model.layers),
            ("model.ffn_dim", model.ffn_dim),
            ("model.in_channels", model.in_channels),
            ("model.out_channels", model.out_channels),
            ("model.text_dim", model.text_dim),
            ("model.text_len", model.text_len),
        ] {
            positive(field, value)?;
        }
        positive("model.parameters", model.parameters)?;
        let divides = model.dim.is_multiple_of(model.heads);
        require(divides, "model.heads", format!("a divisor of dim {}", model.dim), model.heads)
    }

    fn check_videos(&self) -> Result<()> {
        require(!self.videos.is_empty(), "videos", "at least one video", "none")?;
        let mut seen = BTreeSet::new();
        for (i, video) in self.videos.iter().enumerate() {
            let at = &format!("videos[{i}]");
            let this = (video.width, video.height, video.frames);
            let expected = "a width, height and number of frames that no video before it has";
            require(seen.insert(this), at, expected, this)?;
            self.check_video(at, video)?;
        }
        let (inputs, channels) = (self.model.in_channels, self.model.out_channels);
        require(inputs >= channels, "model.in_channels", format!("at least {channels}"), inputs)
    }

    fn check_video(&self, at: &str, video: &Video) -> Result<()> {
        let field = |name: &str| format!("{at}.{name}");
        for (name, value) in
            [("width", video.width), ("height", video.height), ("frames", video.frames), ("fps", video.fps)]
        {
            positive(&field(name), value)?;
        }
        let strides = video.vae_stride;
        require(strides.iter().all(|&s| s > 0), &field("vae_stride"), "positive strides", strides)?;
        let [time, height, width] = strides;
        let frames = (video.frames - 1).is_multiple_of(time);
        require(frames, &field("frames"), format!("1 plus a multiple of {time}"), video.frames)?;
        // Two latents make a patch.
        for (name, pixels, stride) in [("width", video.width, width), ("height", video.height, height)] {
            let patch = u64::from(stride) * 2;
            let whole = u64::from(pixels).is_multiple_of(patch);
            require(whole, &field(name), format!("a multiple of {patch}"), pixels)?;
        }
        let channels = self.model.out_channels;
        let latent = [channels, (video.frames - 1) / time + 1, video.height / height, video.width / width];
        require(video.latent == latent, &field("latent"), format!("{latent:?}"), video.latent)?;
        tensor(&field("latent"), DType::F64, &latent.map(u64::from))?; // so the product below fits
        let tokens = latent[1..].iter().map(|&n| u64::from(n)).product::<u64>() / 4;
        require(video.tokens == tokens, &field("tokens"), tokens, video.tokens)?;
        for (name, list) in [("latent_mean", &video.latent_mean), ("latent_std", &video.latent_std)] {
            let expected = format!("{channels} numbers, one per latent channel");
            require(list.len() == channels as usize, &field(name), expected, list.len())?;
            require(list.iter().all(|x| x.is_finite()), &field(name), "finite numbers", list)?;
        }
        let std = &video.latent_std;
        require(std.iter().all(|&x| x > 0.0), &field("latent_std"), "positive numbers", std)
    }

    fn check_recipe(&self) -> Result<()> {
        let attention = &self.recipe.attention;
        match *attention {
            Attention::Dense {} => {}
            Attention::Sage { block_q, block_k, .. }
            | Attention::Sla { block_q, block_k, .. }
            | Attention::SageSla { block_q, block_k, .. } => {
                positive("recipe.attention.block_q", block_q)?;
                positive("recipe.attention.block_k", block_k)?;
            }
        }
        if let Attention::Sla { topk, .. } | Attention::SageSla { topk, .. } = *attention {
            let share = topk > 0.0 && topk <= 1.0;
            require(share, "recipe.attention.topk", "a share above 0, at most 1", topk)?;
        }
        for (i, video) in self.videos.iter().enumerate() {
            let field = &format!("videos[{i}].keep_blocks");
            let keep = video.keep_blocks;
            let Some(block_k) = attention.sparse_block_k() else {
                require(keep.is_none(), field, "none, because attention is not sparse", keep)?;
                continue;
            };
            let blocks = video.tokens.div_ceil(block_k.into());
            let kept = keep.is_some_and(|keep| (1..=blocks).contains(&keep.into()));
            require(kept, field, format!("1 to {blocks}"), keep)?;
        }
        Ok(())
    }

    fn check_sampling(&self) -> Result<()> {
        let sampling = &self.sampling;
        require((1..=4).contains(&sampling.steps), "sampling.steps", "1 to 4", sampling.steps)?;
        let sigma = sampling.sigma_max;
        require(sigma.is_finite() && sigma > 0.0, "sampling.sigma_max", "a positive number", sigma)?;
        match (sampling.boundary, &self.experts.low) {
            (None, None) => Ok(()),
            (Some(boundary), Some(_)) => {
                let inside = boundary > 0.0 && boundary < 1.0;
                require(inside, "sampling.boundary", "a time between 0 and 1", boundary)
            }
            (None, Some(_)) => {
                require(false, "sampling.boundary", "a time, because there are two experts", ())
            }
            (Some(boundary), None) => {
                require(false, "sampling.boundary", "none, because there is one expert", boundary)
            }
        }
    }

    fn check_entries(&self) -> Result<()> {
        let mut seen = BTreeSet::from([MANIFEST.to_string()]);
        for (i, entry) in self.entries.iter().enumerate() {
            let field = &format!("entries[{i}].path");
            if let Err(why) = name::check(entry.path.as_bytes()) {
                return require(false, field, format!("a clean relative path ({why})"), &entry.path);
            }
            let fresh = seen.insert(entry.path.to_ascii_lowercase());
            require(fresh, field, "a path that is not in use already (case does not count)", &entry.path)?;
            sha256(&format!("entries[{i}].sha256"), &entry.sha256)?;
        }
        let paths: BTreeSet<&str> = self.entries.iter().map(|entry| entry.path.as_str()).collect();
        let exists =
            |field: &str, path: &str| require(paths.contains(path), field, "the path of an entry", path);
        exists("tokenizer.entry", &self.tokenizer.entry)?;
        for (i, stage) in self.stages.iter().enumerate() {
            exists(&format!("stages[{i}].graph"), &stage.graph)?;
            for (j, path) in stage.weights.iter().enumerate() {
                exists(&format!("stages[{i}].weights[{j}]"), path)?;
            }
        }
        Ok(())
    }

    fn check_stages(&self) -> Result<()> {
        let mut served = Served::default();
        let mut shared: BTreeMap<&str, Forms> = BTreeMap::new();
        for (i, stage) in self.stages.iter().enumerate() {
            let at = format!("stages[{i}]");
            let videos = self.videos.len();
            let known = stage.video.is_none_or(|video| (video as usize) < videos);
            require(
                known,
                &format!("{at}.video"),
                format!("the index of one of {videos} videos"),
                stage.video,
            )?;
            served.add(&format!("{at}.name"), stage)?;
            let (mut inputs, mut outputs, mut states) = <(Unique, Unique, Unique)>::default();
            for (kind, tensors, names) in
                [("inputs", &stage.inputs, &mut inputs), ("outputs", &stage.outputs, &mut outputs)]
            {
                for (j, one) in tensors.iter().enumerate() {
                    let field = &format!("{at}.{kind}[{j}]");
                    names.add(&format!("{field}.name"), &one.name)?;
                    tensor(field, one.dtype, &one.shape)?;
                }
            }
            require(!stage.outputs.is_empty(), &format!("{at}.outputs"), "at least one output", "none")?;
            for (j, state) in stage.state.iter().enumerate() {
                let field = &format!("{at}.state[{j}]");
                states.add(&format!("{field}.name"), &state.name)?;
                inputs.add(&format!("{field}.input"), &state.input)?;
                outputs.add(&format!("{field}.output"), &state.output)?;
                tensor(field, state.dtype, &state.shape)?;
                let this = (state.dtype, state.shape.as_slice());
                let forms = shared.entry(&state.name).or_default();
                let first = forms.get(&None).or_else(|| match stage.video {
                    Some(_) => forms.get(&stage.video),
                    None => forms.values().find(|&&form| form != this),
                });
                let first = *first.unwrap_or(&this);
                let expected = format!("{first:?} as in the stage that has this state first");
                require(this == first, field, expected, this)?;
                forms.insert(stage.video, this);
            }
            if let Some(bytes) = stage.peak_memory_bytes {
                positive(&format!("{at}.peak_memory_bytes"), bytes)?;
            }
        }
        let mut experts = vec![("experts.high", &self.experts.high)];
        experts.extend(self.experts.low.iter().map(|low| ("experts.low", low)));
        for (field, expert) in experts {
            require(!expert.steps.is_empty(), &format!("{field}.steps"), "at least one stage", "none")?;
            let steps = expert.steps.iter().map(|name| ("steps", name));
            for (part, name) in std::iter::once(("context", &expert.context)).chain(steps) {
                served.everywhere(&format!("{field}.{part}"), name, self.videos.len())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
