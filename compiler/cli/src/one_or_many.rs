//! A list in the recipe file that may be written as its only value: `frames: 81` or `frames: [81, 33]`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Error, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Writes a list of one as its value.
pub(crate) fn serialize<T: Serialize, S: Serializer>(list: &[T], to: S) -> Result<S::Ok, S::Error> {
    match list {
        [one] => one.serialize(to),
        list => list.serialize(to),
    }
}

/// Reads a value as a list of one.
pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    from.deserialize_any(OneOrMany(PhantomData))
}

struct OneOrMany<T>(PhantomData<T>);

// By hand, because serde's untagged enums forget what was wrong with the value.
impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or a list of values")
    }

    fn visit_u64<E: Error>(self, one: u64) -> Result<Vec<T>, E> {
        Ok(vec![T::deserialize(one.into_deserializer())?])
    }

    fn visit_i64<E: Error>(self, one: i64) -> Result<Vec<T>, E> {
        Ok(vec![T::deserialize(one.into_deserializer())?])
    }

    fn visit_str<E: Error>(self, one: &str) -> Result<Vec<T>, E> {
        Ok(vec![T::deserialize(one.into_deserializer())?])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<T>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }
}
