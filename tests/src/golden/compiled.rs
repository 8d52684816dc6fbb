//! Golden checkpoints as turbo-compile takes them in.

use std::path::Path;

use anyhow::Result;
use turbo_checkpoint::Checkpoint;
use turbo_compile::network::Network;
use turbo_compile::stages::weight_forms;
use turbo_compile::stored::Stored;
use turbo_graph::Graph;
use turbo_models::dit::Linear;

use crate::vectors::find;

/// A checkpoint as turbo-compile takes it in.
pub struct Compiled {
    /// The recognised network.
    pub network: &'static Network,
    /// The weights that it would store of it, in the checkpoint's forms.
    pub stored: Stored<'static>,
    linear: Linear,
}

impl Compiled {
    /// Recognises a golden checkpoint, with linears of full precision.
    ///
    /// # Errors
    /// It is not there, or is no network.
    pub fn find(name: &str) -> Result<Compiled> {
        Compiled::open(&find(name)?, Linear::Bf16)
    }

    /// Recognises a checkpoint, a file or a folder.
    ///
    /// # Errors
    /// It is no network, or cannot be stored.
    pub fn open(path: &Path, linear: Linear) -> Result<Compiled> {
        let network = Network::identify(path, Checkpoint::open(path)?)?;
        // Lives as long as the process: there are few, and they are mapped.
        let network: &'static Network = Box::leak(Box::new(network));
        Ok(Compiled { network, stored: Stored::plan(network, linear)?, linear })
    }

    /// The safetensors file of weights that a graph runs over, each in the form in which that graph has it.
    ///
    /// # Errors
    /// Weights that cannot be stored.
    pub fn weights(&self, graph: &Graph) -> Result<Vec<u8>> {
        let mut stored = Stored::plan(self.network, self.linear)?;
        stored.convert(&weight_forms(std::iter::once(graph))?);
        let mut file = Vec::new();
        stored.write(&stored.layout(), &mut file, &mut |_| Ok(()))?;
        Ok(file)
    }
}
