//! An opened checkpoint.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::index::{Index, parse_index};
use crate::map::MappedFile;
use crate::scan::shard_name;
use crate::sniff::describe;
use crate::{DType, Error, Format, Source, TensorView, safetensors, scan, sniff, torch};

/// Named tensors in one or more mapped files. Dropping it unmaps them.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<PathBuf>,
    shards: Vec<MappedFile>,
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
    ignored: Vec<String>,
}

#[derive(Debug)]
struct Tensor {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    strides: Option<Vec<usize>>,
    shard: usize,
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Opens a checkpoint: a safetensors or PyTorch file, an index with its shards, or a folder that holds
    /// exactly one checkpoint. Files are told apart by content.
    ///
    /// Reads headers only; weights are mapped and read when they are used.
    ///
    /// # Errors
    /// [`Error`]; of a folder with several checkpoints [`Error::Ambiguous`], for which there is [`scan`].
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        if path.is_dir() {
            let mut sources = scan(path)?;
            return match (sources.pop(), sources.is_empty()) {
                (Some(only), true) => Checkpoint::open_source(&only),
                (None, _) => Err(Error::NothingFound { path: path.to_owned() }),
                (Some(last), false) => {
                    sources.push(last);
                    let found =
                        sources.into_iter().filter_map(|source| source.paths.into_iter().next()).collect();
                    Err(Error::Ambiguous { path: path.to_owned(), found })
                }
            };
        }
        match sniff(path)? {
            Some(format) => Checkpoint::open_source(&Source { paths: vec![path.to_owned()], format }),
            None => Err(Error::UnknownFormat { path: path.to_owned(), found: describe(path)? }),
        }
    }

    /// Opens what [`scan`] found.
    ///
    /// # Errors
    /// [`Error`]: damaged files, missing shards, tensors in two shards.
    pub fn open_source(source: &Source) -> Result<Checkpoint, Error> {
        let mut checkpoint = Checkpoint {
            files: vec![],
            shards: vec![],
            tensors: vec![],
            by_name: HashMap::new(),
            metadata: BTreeMap::new(),
            ignored: vec![],
        };
        match (source.format, source.paths.first()) {
            (Format::SafetensorsIndex, Some(index)) => checkpoint.add_indexed(index)?,
            _ => {
                check_set(&source.paths)?;
                for path in &source.paths {
                    checkpoint.add_file(path)?;
                }
            }
        }
        Ok(checkpoint)
    }

    /// All tensors, in the order of the files and of the tensors in them.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|tensor| self.view(tensor))
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.by_name.get(name).map(|&index| self.view(&self.tensors[index]))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// `__metadata__` of the safetensors files; where shards disagree, the first one's. Empty for PyTorch
    /// files.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Names of what PyTorch files hold besides tensors: numbers, text, and everything beside a wrapped state
    /// dict. Empty for safetensors.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Every file that belongs to the checkpoint, the index first where there is one.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Tells the system that a tensor's bytes are not needed soon, so that they stop counting as memory of
    /// this process. Only a hint; the bytes stay readable. Call it after copying a tensor out to keep the
    /// peak memory of a pass over a large checkpoint at the size of its largest tensor.
    pub fn release(&self, name: &str) {
        if let Some(&index) = self.by_name.get(name) {
            let tensor = &self.tensors[index];
            self.shards[tensor.shard].release(tensor.bytes.clone());
        }
    }

    fn view<'a>(&'a self, tensor: &'a Tensor) -> TensorView<'a> {
        let shard = &self.shards[tensor.shard];
        TensorView {
            name: &tensor.name,
            dtype: tensor.dtype,
            shape: &tensor.shape,
            file: &shard.path,
            data: &shard.bytes()[tensor.bytes.clone()],
            strides: tensor.strides.as_deref(),
        }
    }

    /// Adds the shards of an index, and checks that it lists exactly what they hold.
    fn add_indexed(&mut self, path: &Path) -> Result<(), Error> {
        let broken = |problem| Error::Index { path: path.to_owned(), problem: Box::new(problem) };
        let index: Index = parse_index(MappedFile::open(path)?.bytes()).map_err(broken)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        self.files.push(path.to_owned());
        for name in index.shards() {
            let shard = folder.join(name);
            if !shard.is_file() {
                return Err(broken(index.missing_shard(name, shard)));
            }
            self.add_file(&shard)?;
        }
        let held = self.tensors().map(|tensor| (tensor.name, tensor.file));
        index.check(folder, held).map_err(broken)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), Error> {
        let format = sniff(path)?;
        let shard = MappedFile::open(path)?;
        let number = self.shards.len();
        let path = path.to_owned();
        match format {
            Some(Format::Safetensors) => {
                let header = safetensors::parse_header(shard.bytes()).map_err(|problem| {
                    Error::Safetensors { path: path.clone(), problem: Box::new(problem) }
                })?;
                for (key, value) in header.metadata {
                    self.metadata.entry(key).or_insert(value);
                }
                self.tensors.extend(header.tensors.into_iter().map(|tensor| Tensor {
                    name: tensor.name,
                    dtype: tensor.dtype,
                    shape: tensor.shape,
                    strides: None,
                    shard: number,
                    bytes: tensor.bytes,
                }));
            }
            Some(Format::TorchZip | Format::TorchLegacy) => {
                let file = torch::parse_file(shard.bytes())
                    .map_err(|problem| Error::Torch { path: path.clone(), problem: Box::new(problem) })?;
                self.ignored.extend(file.ignored);
                self.tensors.extend(file.tensors.into_iter().map(|(tensor, bytes)| Tensor {
                    name: tensor.name,
                    dtype: tensor.dtype,
                    shape: tensor.shape,
                    strides: tensor.strides,
                    shard: number,
                    bytes,
                }));
            }
            Some(Format::SafetensorsIndex) | None => {
                let found = describe(&path)?;
                return Err(Error::UnknownFormat { path, found });
            }
        }
        self.files.push(path);
        self.shards.push(shard);
        self.list_names()
    }

    /// Enters the tensors of the last file into the table of names.
    fn list_names(&mut self) -> Result<(), Error> {
        for index in self.by_name.len()..self.tensors.len() {
            let tensor = &self.tensors[index];
            if let Some(first) = self.by_name.insert(tensor.name.clone(), index) {
                return Err(Error::TensorTwice {
                    tensor: tensor.name.clone(),
                    first: self.shards[self.tensors[first].shard].path.clone(),
                    second: self.shards[tensor.shard].path.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Checks that files called `name-00001-of-0000N` are all there.
fn check_set(paths: &[PathBuf]) -> Result<(), Error> {
    let Some((path, name)) = paths.iter().find_map(|path| Some((path, shard_name(path)?))) else {
        return Ok(());
    };
    let present: HashSet<usize> = paths.iter().filter_map(|path| Some(shard_name(path)?.number)).collect();
    let missing: Vec<usize> = (1..=name.total).filter(|number| !present.contains(number)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::IncompleteSet { path: path.clone(), total: name.total, missing })
}
