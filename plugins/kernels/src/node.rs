//! A kernel with its attributes.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;

use anyhow::{Context, Result, bail};
use turbo_ops::{AttrValue, Attrs, Op};

use crate::elements::{Element, attrs_for};
use crate::library::{Library, RawCall, RawTensor};
use crate::memory::Block;

/// The value of an attribute as the library takes it.
#[derive(Clone, Debug, PartialEq)]
enum Setting {
    Int(i64),
    Float(f32),
    Word(CString),
}

/// All attributes of a node as the library takes them.
fn settings(op: &Op, attrs: &Attrs, activation: Element) -> Result<Vec<(CString, Setting)>> {
    let attrs = attrs_for(op, attrs, activation);
    let setting = |(name, value): (&str, &AttrValue)| {
        let value = match value {
            AttrValue::Int(v) => Setting::Int(*v),
            AttrValue::Float(v) => Setting::Float(*v),
            AttrValue::Choice(word) => Setting::Word(CString::new(word.as_str())?),
        };
        Ok((CString::new(name)?, value))
    };
    attrs.iter().map(setting).collect()
}

/// A tensor of a call: type, shape and, where they matter, its bytes.
pub struct Argument<'a> {
    /// Element type.
    pub element: Element,
    /// Extents, outermost first.
    pub shape: &'a [usize],
    /// The elements.
    pub block: Option<&'a Block<'a>>,
}

impl Argument<'_> {
    fn raw(&self) -> Result<RawTensor> {
        let mut dim = [0; 4];
        for (to, &from) in dim.get_mut(..self.shape.len()).context("rank above 4")?.iter_mut().zip(self.shape)
        {
            *to = i64::try_from(from)?;
        }
        let bytes = self.shape.iter().product::<usize>() * self.element.size();
        if self.block.is_some_and(|block| block.bytes() < bytes) {
            bail!("a tensor of {:?} needs {bytes} bytes", self.shape);
        }
        let data = self.block.map_or(std::ptr::null_mut(), |block| block.at(0));
        Ok(RawTensor { element: self.element as i32, rank: self.shape.len() as i32, dim, data })
    }
}

/// The tensors of a call in the order of the definition.
pub struct Call<'a> {
    inputs: Vec<RawTensor>,
    outputs: Vec<RawTensor>,
    workspace: (*mut c_void, usize),
    blocks: PhantomData<&'a Block<'a>>,
}

impl<'a> Call<'a> {
    /// A call whose sizes alone matter has no workspace.
    ///
    /// # Errors
    /// A tensor whose block is too small.
    pub fn new(
        inputs: &[Argument<'a>],
        outputs: &[Argument<'a>],
        workspace: Option<&'a Block<'a>>,
    ) -> Result<Self> {
        let raw = |list: &[Argument<'_>]| list.iter().map(Argument::raw).collect::<Result<Vec<_>>>();
        let workspace = workspace.map_or((std::ptr::null_mut(), 0), |block| (block.at(0), block.bytes()));
        Ok(Call { inputs: raw(inputs)?, outputs: raw(outputs)?, workspace, blocks: PhantomData })
    }

    fn raw(&self) -> RawCall {
        RawCall {
            inputs: self.inputs.as_ptr(),
            outputs: self.outputs.as_ptr(),
            input_count: self.inputs.len() as i32,
            output_count: self.outputs.len() as i32,
            workspace: self.workspace.0,
            workspace_bytes: self.workspace.1,
        }
    }
}

/// An op with its attributes, freed when dropped.
pub struct Node<'a> {
    library: &'a Library,
    handle: *mut c_void,
}

impl<'a> Node<'a> {
    /// # Errors
    /// An op or attribute that the library does not know or take.
    pub fn new(library: &'a Library, op: &Op, attrs: &Attrs, activation: Element) -> Result<Self> {
        let name = CString::new(op.name)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the name is terminated; `handle` outlives the call.
        library.call(|f, text, size| unsafe { (f.create)(name.as_ptr(), &raw mut handle, text, size) })?;
        let node = Node { library, handle };
        for (name, value) in settings(op, attrs, activation)? {
            let name = name.as_ptr();
            // SAFETY: the node lives and is used by this thread alone; name and word are terminated.
            library.call(|f, text, size| unsafe {
                match &value {
                    Setting::Int(v) => (f.set_int)(handle, name, *v, text, size),
                    Setting::Float(v) => (f.set_float)(handle, name, *v, text, size),
                    Setting::Word(v) => (f.set_word)(handle, name, v.as_ptr(), text, size),
                }
            })?;
        }
        Ok(node)
    }

    /// Bytes of workspace that the kernel needs.
    ///
    /// # Errors
    /// What the definition or the kernel does not take.
    pub fn prepare(&self, call: &Call<'_>) -> Result<usize> {
        let (raw, mut bytes) = (call.raw(), 0);
        let into = &raw mut bytes;
        // SAFETY: the node lives; `raw` and what it points to outlive the call, which reads sizes and types alone.
        self.library.call(|f, text, size| unsafe { (f.prepare)(self.handle, &raw, into, text, size) })?;
        Ok(bytes)
    }

    /// Runs the kernel and waits for it.
    ///
    /// # Errors
    /// As [`Node::prepare`]; what happened on the device.
    pub fn run(&self, call: &Call<'_>) -> Result<()> {
        let raw = call.raw();
        // SAFETY: the node lives; `raw` and what it points to outlive the work, which is waited for. The blocks are
        // as large as the tensors.
        self.library.call(|f, text, size| unsafe {
            (f.launch)(self.handle, &raw, std::ptr::null_mut(), text, size)
        })?;
        self.library.synchronize()
    }

    /// Captures the kernel in a CUDA graph and runs that, twice.
    ///
    /// # Errors
    /// As [`Node::run`]; what cannot be captured.
    pub fn replay(&self, call: &Call<'_>) -> Result<()> {
        let raw = call.raw();
        // SAFETY: as in `run`; the function itself waits.
        self.library.call(|f, text, size| unsafe { (f.replay)(self.handle, &raw, 2, text, size) })
    }

    /// Microseconds of each of some runs that find the L2 cache without their data.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn time(&self, call: &Call<'_>, runs: usize) -> Result<Vec<f32>> {
        let (raw, mut times) = (call.raw(), vec![0.0; runs]);
        let count = i32::try_from(runs)?;
        // SAFETY: as in `run`; the function itself waits and writes `runs` times.
        self.library.call(|f, text, size| unsafe {
            (f.time)(self.handle, &raw, count, times.as_mut_ptr(), text, size)
        })?;
        Ok(times)
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle came from `create` and is used no more.
        unsafe { (self.library.functions.destroy)(self.handle) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_every_kind_are_converted() {
        let op = &turbo_ops::norm::OP;
        let attrs = Attrs::new().choice("kind", "rms").float("eps", 1e-6);
        let word = |text: &str| CString::new(text).unwrap();
        let expected = [(word("eps"), Setting::Float(1e-6)), (word("kind"), Setting::Word(word("rms")))];
        assert_eq!(settings(op, &attrs, Element::Bf16).unwrap(), expected);
        let attrs = Attrs::new().int("batch", 2).int("heads", 12);
        let expected = [(word("batch"), Setting::Int(2)), (word("heads"), Setting::Int(12))];
        assert_eq!(settings(&turbo_ops::attention::OP, &attrs, Element::F16).unwrap(), expected);
    }

    #[test]
    fn every_case_has_all_attributes_of_its_op() {
        for op in turbo_ops::ALL {
            for case in (op.cases)() {
                for &activation in crate::elements::activations(op) {
                    let set = settings(op, &case.attrs, activation).unwrap();
                    assert_eq!(set.len(), op.attrs.len(), "{} {}", op.name, case.name);
                    let dtype = set.iter().find(|(name, _)| name.as_bytes() == b"dtype");
                    let right = Setting::Word(CString::new(activation.name()).unwrap());
                    assert!(dtype.is_none_or(|(_, value)| *value == right), "{} {}", op.name, case.name);
                }
            }
        }
    }
}
