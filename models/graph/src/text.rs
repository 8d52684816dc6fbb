//! The readable form of a graph, for inspection and for test snapshots.

use std::fmt;

use crate::{Graph, Payload};

impl fmt::Display for Graph {
    /// One line per input, node and output: `name: type[shape] = Op(operands) {attributes}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph {}", self.name)?;
        for &v in self.inputs() {
            writeln!(f, "  input {}: {}", self.value_name(v), self.describe(v))?;
        }
        for i in self.initializers() {
            if let Payload::Weight(name) = &i.payload {
                writeln!(f, "  weight {name}: {}", self.describe(i.value))?;
            }
        }
        for n in self.nodes() {
            let outs: Vec<String> =
                n.outputs.iter().map(|&v| format!("{}: {}", self.value_name(v), self.describe(v))).collect();
            let ins: Vec<&str> = n.inputs.iter().map(|v| v.map_or("-", |v| self.value_name(v))).collect();
            write!(f, "  {} = {}({})", outs.join(", "), n.op, ins.join(", "))?;
            if !n.attrs.is_empty() {
                let attrs: Vec<String> = n.attrs.iter().map(|(k, v)| format!("{k}={v:?}")).collect();
                write!(f, " {{{}}}", attrs.join(", "))?;
            }
            writeln!(f)?;
        }
        for &v in self.outputs() {
            writeln!(f, "  output {}: {}", self.value_name(v), self.describe(v))?;
        }
        Ok(())
    }
}
