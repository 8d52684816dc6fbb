//! A pickle machine that can build dicts, lists, tuples, numbers, text and tensors, and nothing else.
//!
//! Python's pickle is a program for a stack machine (CPython, `Lib/pickletools.py`); `torch.save` writes
//! protocol 2 by default and up to 5 on request. Names outside [`Global`] are refused where they appear.
//! Text, and the objects that hold it, borrow from the input; objects live in one list and refer to each
//! other by index, so a cyclic pickle costs nothing.

use std::collections::HashMap;

use super::globals::{ElementType, Global};
use super::rebuild;

/// Instructions that are carried out, and elements that are copied, before the pickle counts as hostile.
/// A tensor takes about 40; this is enough for 100 000 tensors.
pub(super) const MAX_STEPS: usize = 1 << 22;
/// Values on the stack.
pub(super) const MAX_STACK: usize = 1 << 20;
/// Values in the memo.
pub(super) const MAX_MEMO: usize = 1 << 20;
/// Tensors in all.
pub(super) const MAX_TENSORS: usize = 1 << 18;

/// Why a pickle was refused. `at` is a byte position in the pickle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// It names something outside the allow-list.
    #[error(
        "pickle refuses to call {name} at byte {at}: only tensors and plain containers are read; \
         hint: save the bare state_dict, or use a safetensors file"
    )]
    Refused {
        /// Module and name.
        name: String,
        /// Where.
        at: usize,
    },
    /// It uses an instruction that no tensor needs.
    #[error("pickle has instruction 0x{op:02x} at byte {at}, which no checkpoint of tensors needs")]
    Instruction {
        /// The instruction.
        op: u8,
        /// Where.
        at: usize,
    },
    /// Protocol out of range.
    #[error("pickle has protocol {found}, expected 2 to 5; hint: re-save the file with a current torch.save")]
    Protocol {
        /// The number, 0 when the pickle does not begin with one.
        found: u8,
    },
    /// It ends inside an instruction.
    #[error("pickle ends at byte {at} inside an instruction")]
    Truncated {
        /// Its length.
        at: usize,
    },
    /// It would take too much memory or time.
    #[error("pickle exceeds {limit} {what} at byte {at}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
        /// Where.
        at: usize,
    },
    /// An instruction found something else than it needs.
    #[error("pickle is malformed at byte {at}: expected {expected}")]
    Malformed {
        /// What was expected.
        expected: &'static str,
        /// Where.
        at: usize,
    },
}

/// A value. Copies refer to the same object, as in Python.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'p> {
    /// `None`, a float, bytes or an integer of more than 64 bits: nothing that a tensor is made of.
    Other,
    Bool,
    Int(i64),
    Text(&'p str),
    Global(Global),
    /// Index into [`Objects`].
    Object(usize),
}

/// An object that others can refer to.
#[derive(Debug)]
pub(super) enum Object<'p> {
    Tuple(Vec<Value<'p>>),
    List(Vec<Value<'p>>),
    Dict(Vec<(Value<'p>, Value<'p>)>),
    Storage(Storage<'p>),
    Tensor(Box<Tensor<'p>>),
}

/// A storage of the archive, as its persistent id describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'p> {
    pub(super) element: ElementType,
    /// Name of the entry under `data/`.
    pub(super) key: &'p str,
    /// Length in elements of `element`.
    pub(super) numel: usize,
}

/// A tensor as the pickle describes it, not yet checked against its storage.
#[derive(Debug)]
pub(super) struct Tensor<'p> {
    pub(super) storage: Storage<'p>,
    pub(super) element: ElementType,
    /// In elements.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// In elements, as many as `shape`.
    pub(super) strides: Vec<usize>,
}

/// All objects of a pickle.
pub(super) type Objects<'p> = Vec<Object<'p>>;

/// Carries out a pickle.
pub(super) fn load(pickle: &[u8]) -> Result<(Objects<'_>, Value<'_>), PickleError> {
    let mut machine = Machine {
        input: pickle,
        next: 0,
        at: 0,
        steps: 0,
        stack: vec![],
        marks: vec![],
        memo: HashMap::new(),
        objects: vec![],
        tensors: 0,
    };
    match (machine.byte()?, machine.byte()?) {
        (0x80, 2..=5) => {}
        (0x80, found) => return Err(PickleError::Protocol { found }),
        _ => return Err(PickleError::Protocol { found: 0 }),
    }
    let root = machine.run()?;
    Ok((machine.objects, root))
}

pub(super) struct Machine<'p> {
    input: &'p [u8],
    /// Position of the next byte to read.
    next: usize,
    /// Position of the instruction that is carried out.
    at: usize,
    steps: usize,
    stack: Vec<Value<'p>>,
    /// Heights of the stack at each `MARK`.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'p>>,
    pub(super) objects: Objects<'p>,
    pub(super) tensors: usize,
}

impl<'p> Machine<'p> {
    fn run(&mut self) -> Result<Value<'p>, PickleError> {
        loop {
            self.at = self.next;
            self.charge(1)?;
            let op = self.byte()?;
            match op {
                b'.' => return self.stop(),
                0x80 | 0x95 => self.frame(op)?,
                b'(' => self.marks.push(self.stack.len()),
                b'0' => self.discard()?,
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.push(top)?;
                }
                b'N' => self.push(Value::Other)?,
                0x88 | 0x89 => self.push(Value::Bool)?,
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()))?;
                }
                b'K' => {
                    let value = self.byte()?;
                    self.push(Value::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()))?;
                }
                b'G' => {
                    self.array::<8>()?;
                    self.push(Value::Other)?;
                }
                0x8a | 0x8b => self.long(op)?,
                b'X' | 0x8c | 0x8d => self.text(op)?,
                b'B' | b'C' | 0x8e => self.bytes(op)?,
                b'q' | b'r' | 0x94 => self.memo_put(op)?,
                b'h' | b'j' => self.memo_get(op)?,
                b')' => self.push_object(Object::Tuple(vec![]))?,
                b']' => self.push_object(Object::List(vec![]))?,
                b'}' => self.push_object(Object::Dict(vec![]))?,
                b't' => {
                    let items = self.pop_mark()?;
                    self.push_object(Object::Tuple(items))?;
                }
                0x85..=0x87 => {
                    let count = usize::from(op - 0x84);
                    let begin = self.above_mark(count)?;
                    let items = self.stack.split_off(begin);
                    self.push_object(Object::Tuple(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(items)?;
                }
                b'c' | b'i' => self.global(op)?,
                0x93 => self.stack_global()?,
                b'R' | 0x81 => {
                    let (args, callable) = (self.pop()?, self.pop()?);
                    let result = rebuild::call(self, callable, args)?;
                    self.push(result)?;
                }
                b'b' => self.build()?,
                b'Q' => {
                    let id = self.pop()?;
                    let storage = rebuild::storage(self, id)?;
                    self.push_object(Object::Storage(storage))?;
                }
                op => return Err(PickleError::Instruction { op, at: self.at }),
            }
        }
    }

    fn stop(&mut self) -> Result<Value<'p>, PickleError> {
        let root = self.pop()?;
        if self.next != self.input.len() || !self.stack.is_empty() {
            return Err(self.malformed("nothing behind or beside the result"));
        }
        Ok(root)
    }

    /// `PROTO` again, or `FRAME`, which only says how far to read ahead.
    fn frame(&mut self, op: u8) -> Result<(), PickleError> {
        if op == 0x80 {
            let found = self.byte()?;
            return if (2..=5).contains(&found) { Ok(()) } else { Err(PickleError::Protocol { found }) };
        }
        let len = u64::from_le_bytes(self.array()?);
        let left = (self.input.len() - self.next) as u64;
        if len > left { Err(PickleError::Truncated { at: self.input.len() }) } else { Ok(()) }
    }

    /// `POP`, which also takes a mark when one is on top.
    fn discard(&mut self) -> Result<(), PickleError> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn long(&mut self, op: u8) -> Result<(), PickleError> {
        let len = if op == 0x8a { usize::from(self.byte()?) } else { self.len_u32()? };
        let bytes = self.take(len)?;
        // Two's complement of any length; what does not fit 64 bits is no size, offset or stride.
        let value = match (bytes.len(), bytes.last()) {
            (1..=8, Some(&last)) => {
                let mut wide = [if last & 0x80 == 0 { 0 } else { 0xff }; 8];
                wide[..bytes.len()].copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(wide))
            }
            (0, _) => Value::Int(0),
            _ => Value::Other,
        };
        self.push(value)
    }

    fn text(&mut self, op: u8) -> Result<(), PickleError> {
        let len = match op {
            0x8c => usize::from(self.byte()?),
            b'X' => self.len_u32()?,
            _ => self.len_u64()?,
        };
        let bytes = self.take(len)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.malformed("UTF-8 text"))?;
        self.push(Value::Text(text))
    }

    fn bytes(&mut self, op: u8) -> Result<(), PickleError> {
        let len = match op {
            b'C' => usize::from(self.byte()?),
            b'B' => self.len_u32()?,
            _ => self.len_u64()?,
        };
        self.take(len)?;
        self.push(Value::Other)
    }

    fn memo_put(&mut self, op: u8) -> Result<(), PickleError> {
        let key = match op {
            b'q' => u32::from(self.byte()?),
            b'r' => u32::from_le_bytes(self.array()?),
            _ => u32::try_from(self.memo.len()).map_err(|_| self.limit("memo entries", MAX_MEMO))?,
        };
        let value = self.top()?;
        self.memo.insert(key, value);
        if self.memo.len() > MAX_MEMO { Err(self.limit("memo entries", MAX_MEMO)) } else { Ok(()) }
    }

    fn memo_get(&mut self, op: u8) -> Result<(), PickleError> {
        let key = if op == b'h' { u32::from(self.byte()?) } else { u32::from_le_bytes(self.array()?) };
        let value =
            *self.memo.get(&key).ok_or_else(|| self.malformed("a memo entry that was stored before"))?;
        self.push(value)
    }

    fn append(&mut self, items: Vec<Value<'p>>) -> Result<(), PickleError> {
        match self.top_object()? {
            Object::List(list) => list.extend(items),
            _ => return Err(self.malformed("a list to append to")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Value<'p>>) -> Result<(), PickleError> {
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(self.malformed("a value for every key"));
        };
        match self.top_object()? {
            Object::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            _ => return Err(self.malformed("a dict to fill")),
        }
        Ok(())
    }

    /// `BUILD` sets attributes. A state dict has one, `_metadata`, which holds version numbers of modules.
    fn build(&mut self) -> Result<(), PickleError> {
        self.pop()?;
        match self.top_object()? {
            Object::Dict(_) => Ok(()),
            _ => Err(self.malformed("a dict to set attributes of")),
        }
    }

    /// `GLOBAL`, and `INST` of protocol 0, which would call at once.
    fn global(&mut self, op: u8) -> Result<(), PickleError> {
        let (module, name) = (self.line()?, self.line()?);
        match Global::lookup(module, name) {
            Some(global) if op == b'c' => self.push(Value::Global(global)),
            _ => Err(self.refused(module, name)),
        }
    }

    fn stack_global(&mut self) -> Result<(), PickleError> {
        let (name, module) = (self.pop()?, self.pop()?);
        let (Value::Text(module), Value::Text(name)) = (module, name) else {
            return Err(self.malformed("a module and a name"));
        };
        let global = Global::lookup(module, name).ok_or_else(|| self.refused(module, name))?;
        self.push(Value::Global(global))
    }

    // What instructions are made of.

    /// Counts work, so that a short pickle cannot ask for much of it.
    pub(super) fn charge(&mut self, steps: usize) -> Result<(), PickleError> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > MAX_STEPS { Err(self.limit("steps", MAX_STEPS)) } else { Ok(()) }
    }

    fn push(&mut self, value: Value<'p>) -> Result<(), PickleError> {
        if self.stack.len() >= MAX_STACK {
            return Err(self.limit("values on the stack", MAX_STACK));
        }
        self.stack.push(value);
        Ok(())
    }

    pub(super) fn add(&mut self, object: Object<'p>) -> Value<'p> {
        self.objects.push(object);
        Value::Object(self.objects.len() - 1)
    }

    fn push_object(&mut self, object: Object<'p>) -> Result<(), PickleError> {
        let value = self.add(object);
        self.push(value)
    }

    /// Start of the top `count` values, none of which may be below the last mark.
    fn above_mark(&self, count: usize) -> Result<usize, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let begin = self.stack.len().checked_sub(count).filter(|&begin| begin >= floor);
        begin.ok_or_else(|| self.malformed("more values on the stack"))
    }

    fn pop(&mut self) -> Result<Value<'p>, PickleError> {
        self.above_mark(1)?;
        self.stack.pop().ok_or_else(|| self.malformed("a value on the stack"))
    }

    /// All values above the last mark, and the mark.
    fn pop_mark(&mut self) -> Result<Vec<Value<'p>>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.malformed("a mark on the stack"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn top(&self) -> Result<Value<'p>, PickleError> {
        let begin = self.above_mark(1)?;
        Ok(self.stack[begin])
    }

    fn top_object(&mut self) -> Result<&mut Object<'p>, PickleError> {
        match self.top()? {
            Value::Object(index) => Ok(&mut self.objects[index]),
            _ => Err(self.malformed("an object on the stack")),
        }
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let (head, _) = self.input[self.next..].split_first_chunk::<N>().ok_or(self.truncated())?;
        self.next += N;
        Ok(*head)
    }

    fn take(&mut self, len: usize) -> Result<&'p [u8], PickleError> {
        let (head, _) = self.input[self.next..].split_at_checked(len).ok_or(self.truncated())?;
        self.next += len;
        Ok(head)
    }

    fn len_u32(&mut self) -> Result<usize, PickleError> {
        usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|_| self.truncated())
    }

    fn len_u64(&mut self) -> Result<usize, PickleError> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| self.truncated())
    }

    /// Text up to a line feed.
    fn line(&mut self) -> Result<&'p str, PickleError> {
        let rest = &self.input[self.next..];
        let len = rest.iter().position(|&b| b == b'\n').ok_or(self.truncated())?;
        let line = self.take(len)?;
        self.next += 1;
        std::str::from_utf8(line).map_err(|_| self.malformed("UTF-8 text"))
    }

    pub(super) fn malformed(&self, expected: &'static str) -> PickleError {
        PickleError::Malformed { expected, at: self.at }
    }

    pub(super) fn limit(&self, what: &'static str, limit: usize) -> PickleError {
        PickleError::Limit { what, limit, at: self.at }
    }

    pub(super) fn refused(&self, module: &str, name: &str) -> PickleError {
        // The name comes from a stranger: no control characters, and not a page of it.
        let name = format!("{module}.{name}").chars().take(120).flat_map(char::escape_default).collect();
        PickleError::Refused { name, at: self.at }
    }

    fn truncated(&self) -> PickleError {
        PickleError::Truncated { at: self.input.len() }
    }
}
