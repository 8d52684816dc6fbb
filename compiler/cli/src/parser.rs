//! Graphs parsed by TensorRT, with the custom ops as plugins.

use std::path::{Path, PathBuf};

use turbo_graph::{Graph, Node};
use turbo_pipeline::tensorrt::plugins;
use turbo_trt::{Builder, Library, Network};

use crate::CompileError;

/// Parses graphs for TensorRT with our plugins, one after the other.
pub struct Parser {
    library: Library,
    plugins: PathBuf,
    /// Made for the first graph, because that takes seconds.
    builder: Option<Builder>,
}

impl Parser {
    /// Finds the plugins of this TensorRT.
    ///
    /// # Errors
    /// No plugin library beside the shim.
    pub fn new(library: &Library) -> Result<Parser, CompileError> {
        Ok(Parser { library: library.clone(), plugins: plugins(library)?, builder: None })
    }

    /// Where the plugins are.
    pub fn plugins(&self) -> &Path {
        &self.plugins
    }

    /// Parses a graph given as ONNX, whose weights lie in the file `beside` or in others of its folder. Errors call it
    /// by `name`.
    ///
    /// # Errors
    /// What TensorRT says of the graph; an op that did not become a plugin.
    pub fn parse(
        &mut self,
        name: &str,
        graph: &Graph,
        onnx: &[u8],
        beside: &Path,
    ) -> Result<Network<'_>, CompileError> {
        let builder = match &mut self.builder {
            Some(builder) => builder,
            none => {
                let mut builder = Builder::new(&self.library)?;
                builder.load_plugins(&self.plugins)?;
                none.insert(builder)
            }
        };
        // The parser takes the name of an ONNX file, which need not exist, to find the weights beside it.
        let network = builder.parse(onnx, &beside.with_extension("onnx"))?;
        let custom = |node: &&Node| node.domain == turbo_ops::DOMAIN;
        let wanted = graph.nodes().iter().filter(custom).count();
        let found = network.layers()?.iter().filter(|layer| layer.plugin.is_some()).count();
        if found != wanted {
            let cause = format!("{wanted} custom ops, of which {found} became plugins");
            return Err(CompileError::Network { path: name.into(), cause });
        }
        Ok(network)
    }
}
