//! What the allowed names do when a pickle calls them.

use super::globals::Global;
use super::pickle::{MAX_TENSORS, Machine, Object, PickleError, Storage, Tensor, Value};
use crate::tensor::MAX_RANK;

/// Most arguments any allowed name takes.
const MAX_ARGS: usize = 8;

/// Calls `callable` with a tuple of arguments (`REDUCE` and `NEWOBJ`).
pub(super) fn call<'p>(
    machine: &mut Machine<'p>,
    callable: Value<'p>,
    args: Value<'p>,
) -> Result<Value<'p>, PickleError> {
    let Value::Global(global) = callable else {
        return Err(machine.malformed("an allowed name to call"));
    };
    let args = tuple(machine, args)?;
    if args.len() > MAX_ARGS {
        return Err(machine.malformed("the arguments that torch.save writes for this call"));
    }
    let args = args.to_vec();
    match (global, args.as_slice()) {
        (Global::OrderedDict, []) => Ok(machine.add(Object::Dict(vec![]))),
        (Global::OrderedDict, &[pairs]) => ordered_dict(machine, pairs),
        // The last argument, where there is one more, is metadata such as a conjugate flag; none of it
        // applies to the types that are read.
        (
            Global::RebuildTensorV2,
            &[storage, offset, shape, strides, _grad, _hooks]
            | &[storage, offset, shape, strides, _grad, _hooks, _],
        ) => tensor(machine, storage, offset, shape, strides, None),
        (
            Global::RebuildTensorV3,
            &[storage, offset, shape, strides, _grad, _hooks, dtype]
            | &[storage, offset, shape, strides, _grad, _hooks, dtype, _],
        ) => tensor(machine, storage, offset, shape, strides, Some(dtype)),
        (Global::RebuildParameter, &[data, _grad, _hooks]) => match object(machine, data) {
            Some(Object::Tensor(_)) => Ok(data),
            _ => Err(machine.malformed("a tensor to make a parameter of")),
        },
        (Global::Size, &[lengths]) => tuple(machine, lengths).map(|_| lengths),
        (Global::Storage(_), _) => Err(machine.malformed("a storage id; a storage class is never called")),
        (Global::DType(_), _) => Err(machine.malformed("a name that can be called, not a dtype")),
        _ => Err(machine.malformed("the arguments that torch.save writes for this call")),
    }
}

/// Resolves a persistent id: `('storage', class, key, location, numel)`.
pub(super) fn storage<'p>(machine: &Machine<'p>, id: Value<'p>) -> Result<Storage<'p>, PickleError> {
    match *tuple(machine, id)? {
        [
            Value::Text("storage"),
            Value::Global(Global::Storage(element)),
            Value::Text(key),
            Value::Text(_),
            Value::Int(numel),
        ] => {
            let numel =
                usize::try_from(numel).map_err(|_| machine.malformed("a storage length of at least 0"))?;
            Ok(Storage { element, key, numel })
        }
        _ => Err(machine.malformed("a storage id ('storage', class, key, location, length)")),
    }
}

fn object<'m, 'p>(machine: &'m Machine<'p>, value: Value<'p>) -> Option<&'m Object<'p>> {
    match value {
        Value::Object(index) => machine.objects.get(index),
        _ => None,
    }
}

fn tuple<'m, 'p>(machine: &'m Machine<'p>, value: Value<'p>) -> Result<&'m [Value<'p>], PickleError> {
    match object(machine, value) {
        Some(Object::Tuple(items)) => Ok(items),
        _ => Err(machine.malformed("a tuple")),
    }
}

/// `OrderedDict([[key, value], ...])`.
fn ordered_dict<'p>(machine: &mut Machine<'p>, pairs: Value<'p>) -> Result<Value<'p>, PickleError> {
    // The list may be a remembered one, which a short pickle could have copied again and again.
    machine.charge(sequence(machine, pairs)?.len())?;
    let dict = sequence(machine, pairs)?
        .iter()
        .map(|&pair| match *sequence(machine, pair)? {
            [key, value] => Ok((key, value)),
            _ => Err(machine.malformed("a pair of key and value")),
        })
        .collect::<Result<_, _>>()?;
    Ok(machine.add(Object::Dict(dict)))
}

fn sequence<'m, 'p>(machine: &'m Machine<'p>, value: Value<'p>) -> Result<&'m [Value<'p>], PickleError> {
    match object(machine, value) {
        Some(Object::List(items) | Object::Tuple(items)) => Ok(items),
        _ => Err(machine.malformed("a list")),
    }
}

fn tensor<'p>(
    machine: &mut Machine<'p>,
    storage: Value<'p>,
    offset: Value<'p>,
    shape: Value<'p>,
    strides: Value<'p>,
    dtype: Option<Value<'p>>,
) -> Result<Value<'p>, PickleError> {
    let Some(&Object::Storage(storage)) = object(machine, storage) else {
        return Err(machine.malformed("a storage to make a tensor of"));
    };
    let element = match dtype {
        None => storage.element,
        Some(Value::Global(Global::DType(element))) => element,
        Some(_) => return Err(machine.malformed("a dtype")),
    };
    let offset = index(machine, offset)?;
    let (shape, strides) = (indices(machine, shape)?, indices(machine, strides)?);
    if shape.len() != strides.len() {
        return Err(machine.malformed("as many strides as axes"));
    }
    machine.tensors += 1;
    if machine.tensors > MAX_TENSORS {
        return Err(machine.limit("tensors", MAX_TENSORS));
    }
    Ok(machine.add(Object::Tensor(Box::new(Tensor { storage, element, offset, shape, strides }))))
}

fn index(machine: &Machine<'_>, value: Value<'_>) -> Result<usize, PickleError> {
    match value {
        Value::Int(value) => usize::try_from(value).ok(),
        _ => None,
    }
    .ok_or_else(|| machine.malformed("an integer of at least 0"))
}

fn indices<'p>(machine: &Machine<'p>, value: Value<'p>) -> Result<Vec<usize>, PickleError> {
    let items = tuple(machine, value)?;
    if items.len() > MAX_RANK {
        return Err(machine.limit("axes of a tensor", MAX_RANK));
    }
    items.iter().map(|&item| index(machine, item)).collect()
}
