//! Keys and values of types as bytes.
//!
//! Keys are sorted as bytes, so a codec for keys keeps order: what is less encodes to less. Numbers
//! are big-endian with the sign turned, texts end in bytes that no text can hold where something
//! follows, a tuple is its parts one behind the other. [`check_order`] tests an own codec for the
//! law.

use std::marker::PhantomData;

use crate::{failure::Failure, fold::get_varint};

/// A way to write keys that keeps their order.
pub trait KeyCodec {
    /// What a key is.
    type Item: Ord;
    /// What is written: the item, or a view of it.
    type Ref<'a>;

    /// A view of an item.
    fn view(item: &Self::Item) -> Self::Ref<'_>;

    /// Appends an item behind which nothing follows.
    fn encode(item: Self::Ref<'_>, out: &mut Vec<u8>) {
        Self::encode_before(item, out);
    }

    /// Reads what [`KeyCodec::encode`] wrote, all of it.
    ///
    /// # Errors
    /// When the bytes are none of its.
    fn decode(mut bytes: &[u8]) -> Result<Self::Item, Failure> {
        let item = Self::decode_before(&mut bytes)?;
        if bytes.is_empty() { Ok(item) } else { Err(bad()) }
    }

    /// Appends an item behind which something may follow.
    fn encode_before(item: Self::Ref<'_>, out: &mut Vec<u8>);

    /// Takes what [`KeyCodec::encode_before`] wrote from the front.
    ///
    /// # Errors
    /// When the bytes are none of its.
    fn decode_before(bytes: &mut &[u8]) -> Result<Self::Item, Failure>;
}

fn bad() -> Failure {
    Failure::user("a key is not what its codec writes")
}

/// Whether the encodings of these items are in the order of the items, and come back.
///
/// # Errors
/// The first two items that are not.
pub fn check_order<K: KeyCodec>(items: &[K::Item]) -> Result<(), Failure>
where
    K::Item: std::fmt::Debug,
{
    let encode = |item| {
        let mut bytes = Vec::new();
        K::encode(K::view(item), &mut bytes);
        bytes
    };
    for one in items {
        for other in items {
            let (left, right) = (encode(one), encode(other));
            if left.cmp(&right) != one.cmp(other) {
                let message = format!("{one:?} as {left:?} and {other:?} as {right:?}");
                return Err(Failure::fatal(format!("the codec does not keep order: {message}")));
            }
        }
        if K::decode(&encode(one))?.cmp(one).is_ne() {
            return Err(Failure::fatal(format!("{one:?} does not come back")));
        }
    }
    Ok(())
}

/// Numbers from 0 to 2^64 - 1, in 8 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Unsigned;

impl KeyCodec for Unsigned {
    type Item = u64;
    type Ref<'a> = u64;

    fn view(item: &u64) -> u64 {
        *item
    }

    fn encode_before(item: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&item.to_be_bytes());
    }

    fn decode_before(bytes: &mut &[u8]) -> Result<u64, Failure> {
        let (number, rest) = bytes.split_first_chunk().ok_or_else(bad)?;
        *bytes = rest;
        Ok(u64::from_be_bytes(*number))
    }
}

/// Numbers from -2^63 to 2^63 - 1, in 8 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Signed;

impl KeyCodec for Signed {
    type Item = i64;
    type Ref<'a> = i64;

    fn view(item: &i64) -> i64 {
        *item
    }

    fn encode_before(item: i64, out: &mut Vec<u8>) {
        Unsigned::encode_before(item.cast_unsigned() ^ (1 << 63), out);
    }

    fn decode_before(bytes: &mut &[u8]) -> Result<i64, Failure> {
        Ok((Unsigned::decode_before(bytes)? ^ (1 << 63)).cast_signed())
    }
}

/// Bytes of any length.
#[derive(Debug, Clone, Copy)]
pub struct Bytes;

/// A zero byte within; the end. No other byte follows a zero.
const ESCAPED: u8 = 0xff;
const END: u8 = 0x01;

impl KeyCodec for Bytes {
    type Item = Vec<u8>;
    type Ref<'a> = &'a [u8];

    fn view(item: &Vec<u8>) -> &[u8] {
        item
    }

    fn encode(item: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(item);
    }

    fn decode(bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        Ok(bytes.to_vec())
    }

    fn encode_before(item: &[u8], out: &mut Vec<u8>) {
        for piece in item.split_inclusive(|byte| *byte == 0) {
            out.extend_from_slice(piece);
            if piece.last() == Some(&0) {
                out.push(ESCAPED);
            }
        }
        out.extend_from_slice(&[0, END]);
    }

    fn decode_before(bytes: &mut &[u8]) -> Result<Vec<u8>, Failure> {
        let mut item = Vec::new();
        loop {
            let zero = memchr::memchr(0, bytes).ok_or_else(bad)?;
            let mark = *bytes.get(zero + 1).ok_or_else(bad)?;
            item.extend_from_slice(&bytes[..zero]);
            *bytes = &bytes[zero + 2..];
            match mark {
                ESCAPED => item.push(0),
                END => return Ok(item),
                _ => return Err(bad()),
            }
        }
    }
}

/// Text, in the order of its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Text;

fn text(bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|_| bad())
}

impl KeyCodec for Text {
    type Item = String;
    type Ref<'a> = &'a str;

    fn view(item: &String) -> &str {
        item
    }

    fn encode(item: &str, out: &mut Vec<u8>) {
        Bytes::encode(item.as_bytes(), out);
    }

    fn decode(bytes: &[u8]) -> Result<String, Failure> {
        text(bytes.to_vec())
    }

    fn encode_before(item: &str, out: &mut Vec<u8>) {
        Bytes::encode_before(item.as_bytes(), out);
    }

    fn decode_before(bytes: &mut &[u8]) -> Result<String, Failure> {
        text(Bytes::decode_before(bytes)?)
    }
}

/// Keys of another codec, the greatest first.
#[derive(Debug, Clone, Copy)]
pub struct Descending<K>(PhantomData<K>);

impl<K: KeyCodec> KeyCodec for Descending<K> {
    type Item = std::cmp::Reverse<K::Item>;
    type Ref<'a> = K::Ref<'a>;

    fn view(item: &Self::Item) -> Self::Ref<'_> {
        K::view(&item.0)
    }

    fn encode_before(item: Self::Ref<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        // With its end, since a shorter key that another continues comes behind it.
        K::encode_before(item, out);
        out[start..].iter_mut().for_each(|byte| *byte = !*byte);
    }

    fn decode_before(bytes: &mut &[u8]) -> Result<Self::Item, Failure> {
        let turned: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        let mut rest = &turned[..];
        let item = K::decode_before(&mut rest)?;
        *bytes = &bytes[bytes.len() - rest.len()..];
        Ok(std::cmp::Reverse(item))
    }
}

impl<A: KeyCodec, B: KeyCodec> KeyCodec for (A, B) {
    type Item = (A::Item, B::Item);
    type Ref<'a> = (A::Ref<'a>, B::Ref<'a>);

    fn view((a, b): &Self::Item) -> Self::Ref<'_> {
        (A::view(a), B::view(b))
    }

    fn encode((a, b): Self::Ref<'_>, out: &mut Vec<u8>) {
        A::encode_before(a, out);
        B::encode(b, out);
    }

    fn decode(mut bytes: &[u8]) -> Result<Self::Item, Failure> {
        Ok((A::decode_before(&mut bytes)?, B::decode(bytes)?))
    }

    fn encode_before((a, b): Self::Ref<'_>, out: &mut Vec<u8>) {
        A::encode_before(a, out);
        B::encode_before(b, out);
    }

    fn decode_before(bytes: &mut &[u8]) -> Result<Self::Item, Failure> {
        Ok((A::decode_before(bytes)?, B::decode_before(bytes)?))
    }
}

impl<A: KeyCodec, B: KeyCodec, C: KeyCodec> KeyCodec for (A, B, C) {
    type Item = (A::Item, B::Item, C::Item);
    type Ref<'a> = (A::Ref<'a>, B::Ref<'a>, C::Ref<'a>);

    fn view((a, b, c): &Self::Item) -> Self::Ref<'_> {
        (A::view(a), B::view(b), C::view(c))
    }

    fn encode((a, b, c): Self::Ref<'_>, out: &mut Vec<u8>) {
        A::encode_before(a, out);
        <(B, C)>::encode((b, c), out);
    }

    fn decode(mut bytes: &[u8]) -> Result<Self::Item, Failure> {
        let a = A::decode_before(&mut bytes)?;
        let (b, c) = <(B, C)>::decode(bytes)?;
        Ok((a, b, c))
    }

    fn encode_before((a, b, c): Self::Ref<'_>, out: &mut Vec<u8>) {
        A::encode_before(a, out);
        <(B, C)>::encode_before((b, c), out);
    }

    fn decode_before(bytes: &mut &[u8]) -> Result<Self::Item, Failure> {
        let a = A::decode_before(bytes)?;
        let (b, c) = <(B, C)>::decode_before(bytes)?;
        Ok((a, b, c))
    }
}

/// The number that a LEB128 varint stands for: a value of [`crate::fold::Sum`] or
/// [`crate::fold::Max`].
///
/// # Errors
/// When the bytes are none.
pub fn number(value: &[u8]) -> Result<u64, Failure> {
    match get_varint(value) {
        Some((number, length)) if length == value.len() => Ok(number),
        Some(_) | None => Err(Failure::user("a value is not a number")),
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Bytes among which zeros and what stands for them are frequent.
    fn odd_bytes() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0_u8), Just(1), Just(0xff), any::<u8>()], 0..6)
    }

    proptest! {
        #[test]
        fn numbers_keep_order(
            unsigned in vec(any::<u64>(), 0..20),
            signed in vec(prop_oneof![any::<i64>(), -2_i64..2], 0..20),
        ) {
            check_order::<Unsigned>(&unsigned).unwrap();
            check_order::<Signed>(&signed).unwrap();
            let turned: Vec<_> = signed.into_iter().map(Reverse).collect();
            check_order::<Descending<Signed>>(&turned).unwrap();
        }

        #[test]
        fn bytes_keep_order_alone_before_others_and_turned(
            bytes in vec(odd_bytes(), 0..20),
            pairs in vec((odd_bytes(), odd_bytes()), 0..20),
        ) {
            check_order::<Bytes>(&bytes).unwrap();
            check_order::<(Bytes, Bytes)>(&pairs).unwrap();
            let turned: Vec<_> = bytes.into_iter().map(Reverse).collect();
            check_order::<Descending<Bytes>>(&turned).unwrap();
            let half: Vec<_> = pairs.into_iter().map(|(a, b)| (Reverse(a), b)).collect();
            check_order::<(Descending<Bytes>, Bytes)>(&half).unwrap();
        }

        #[test]
        fn tuples_keep_order_within_tuples(
            keys in vec(("[a\0b]{0,3}", (any::<i64>(), odd_bytes(), 0_u64..3)), 0..15),
        ) {
            check_order::<(Text, (Signed, Bytes, Unsigned))>(&keys).unwrap();
        }

        #[test]
        fn bytes_of_others_are_refused_and_never_a_panic(bytes in odd_bytes()) {
            let _ = <(Text, Descending<Bytes>, Unsigned)>::decode(&bytes);
            let _ = <(Bytes, Bytes)>::decode(&bytes);
        }
    }

    /// Numbers as decimal digits, which is not their order.
    struct Decimal;

    impl KeyCodec for Decimal {
        type Item = u64;
        type Ref<'a> = u64;

        fn view(item: &u64) -> u64 {
            *item
        }

        fn encode_before(item: u64, out: &mut Vec<u8>) {
            out.extend_from_slice(item.to_string().as_bytes());
        }

        fn decode_before(_: &mut &[u8]) -> Result<u64, Failure> {
            Err(bad())
        }
    }

    #[test]
    fn the_law_test_sees_a_codec_that_breaks_it() {
        let broken = check_order::<Decimal>(&[9, 10]).unwrap_err().to_string();
        assert!(broken.contains("does not keep order"), "{broken}");
    }
}
