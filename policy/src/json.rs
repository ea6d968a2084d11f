//! JSON of images and registries as Go reads it, in whose programs nearly all of it is made: names
//! of fields heed no case, and `null` says nothing.
//!
//! A field that comes twice is refused, of which Go would take the last.
//!
//! The names that a struct gives its fields for serde are in small letters.

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Error, IntoDeserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::marker::PhantomData;

/// A struct, read so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnyCase<T>(pub T);

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for AnyCase<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Fields(PhantomData))
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for Fields<T> {
    type Value = AnyCase<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<AnyCase<T>, M::Error> {
        T::deserialize(MapAccessDeserializer::new(Lowered(map))).map(AnyCase)
    }

    fn visit_unit<E: Error>(self) -> Result<AnyCase<T>, E> {
        Ok(AnyCase(T::default()))
    }
}

/// The same map with keys in small letters.
struct Lowered<M>(M);

impl<'de, M: MapAccess<'de>> MapAccess<'de> for Lowered<M> {
    type Error = M::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, M::Error> {
        let Some(key) = self.0.next_key::<String>()? else { return Ok(None) };
        seed.deserialize(key.to_ascii_lowercase().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, M::Error> {
        self.0.next_value_seed(seed)
    }
}

/// For a field that is a struct.
///
/// # Errors
/// When it is none, or its fields are of other types.
pub fn fields<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    AnyCase::deserialize(from).map(|AnyCase(value)| value)
}

/// For a field that is a struct, and may be absent or `null`.
///
/// # Errors
/// As [`fields`].
pub fn optional<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<AnyCase<T>>::deserialize(from)?.map(|AnyCase(value)| value))
}

/// For a field that is a list of structs, and may be absent or `null`.
///
/// # Errors
/// As [`fields`].
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<Option<Vec<T>>, D::Error> {
    let list = Option::<Vec<AnyCase<T>>>::deserialize(from)?;
    Ok(list.map(|list| list.into_iter().map(|AnyCase(value)| value).collect()))
}

/// For a field of any other type that may be `null`.
///
/// # Errors
/// When it is of another type.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(default)]
    struct Inner {
        #[serde(rename = "mediatype", deserialize_with = "or_default")]
        media_type: String,
    }

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(default)]
    struct Outer {
        #[serde(deserialize_with = "fields")]
        one: Inner,
        #[serde(deserialize_with = "optional")]
        two: Option<Inner>,
        #[serde(deserialize_with = "list")]
        many: Option<Vec<Inner>>,
    }

    fn read(text: &str) -> serde_json::Result<Outer> {
        serde_json::from_str::<AnyCase<Outer>>(text).map(|AnyCase(outer)| outer)
    }

    #[test]
    fn names_of_fields_heed_no_case() {
        let x = || Inner { media_type: "X".to_owned() };
        let all = Outer { one: x(), two: Some(x()), many: Some(vec![x(), Inner::default()]) };
        for text in [
            r#"{"one":{"mediatype":"X"},"two":{"mediatype":"X"},"many":[{"mediatype":"X"},{}]}"#,
            r#"{"ONE":{"mediaType":"X"},"Two":{"MEDIATYPE":"X"},"Many":[{"MediaType":"X","Other":[1]},null],"x":{}}"#,
        ] {
            assert_eq!(read(text).unwrap(), all, "{text}");
        }
    }

    #[test]
    fn what_is_null_is_not_there() {
        for text in ["null", "{}", r#"{"One":null,"Two":null,"Many":null}"#, r#"{"one":{"mediaType":null}}"#] {
            assert_eq!(read(text).unwrap(), Outer::default(), "{text}");
        }
        for text in ["3", "[]", r#""x""#, r#"{"one":[]}"#, r#"{"many":{}}"#, r#"{"one":{"mediaType":3}}"#] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
