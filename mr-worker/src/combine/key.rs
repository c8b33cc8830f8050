//! Keys of up to fifteen bytes as two machine words: most keys of most jobs.
//!
//! Such a key is compared, hashed and copied without a loop and without a look at memory elsewhere.

use std::ops::Range;

/// The longest short key, in bytes.
pub(crate) const SHORT_BYTES_MAX: usize = 15;

/// How many bytes a key takes in its place.
const PLACE_BYTES: usize = 16;

/// For each length the bytes of a key in a number that was read lowest byte first, behind them its
/// length plus one: no key is zero, and keys that differ in zeros at their ends differ.
const SHAPES: [(u128, u128); PLACE_BYTES] = {
    let mut shapes = [(0, 1 << 120); PLACE_BYTES];
    let mut length = 1;
    while length < shapes.len() {
        shapes[length] = (u128::MAX >> (128 - 8 * length), (length as u128 + 1) << 120);
        length += 1;
    }
    shapes
};

/// A key of up to [`SHORT_BYTES_MAX`] bytes. The default is no key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ShortKey([u64; 2]);

impl ShortKey {
    /// The key that lies there in `text`, unless it is longer. Where sixteen bytes of text are left,
    /// this takes no branch.
    #[inline]
    pub(crate) fn within(text: &[u8], key: Range<usize>) -> Option<Self> {
        let length = key.len();
        let (mask, behind) = *SHAPES.get(length)?;
        let bytes = match text.get(key.start..).and_then(<[u8]>::first_chunk::<PLACE_BYTES>) {
            Some(bytes) => u128::from_le_bytes(*bytes),
            None => near_the_end(&text[key]),
        };
        let number = bytes & mask | behind;
        Some(Self([number as u64, (number >> 64) as u64]))
    }

    /// Whether it is no key.
    #[inline]
    pub(crate) fn is_none(self) -> bool {
        self.0[1] == 0
    }

    /// Its highest bits depend on every bit of the key, and on the seeds, so that no input can be
    /// made to collide.
    #[inline]
    pub(crate) fn hash(self, seeds: [u64; 2]) -> u64 {
        let product = u128::from(self.0[0] ^ seeds[0]) * u128::from(self.0[1] ^ seeds[1]);
        (product >> 64) as u64 ^ product as u64
    }

    /// A number that orders as the bytes of keys do, and before that of any longer key.
    #[inline]
    pub(crate) fn order(self) -> u128 {
        let [first, last] = self.0.map(|half| u128::from(half.swap_bytes()));
        (first << 64) | last
    }

    /// The key of an order.
    #[inline]
    pub(crate) fn of_order(order: u128) -> ([u8; PLACE_BYTES], usize) {
        ((order).to_be_bytes(), (order as u8 as usize).saturating_sub(1).min(SHORT_BYTES_MAX))
    }
}

/// The order of a longer key's first bytes: behind every short key that begins it. Keys of which it
/// is the same are to be compared as bytes.
pub(crate) fn order_of_long(key: &[u8]) -> u128 {
    let mut bytes = [u8::MAX; PLACE_BYTES];
    bytes[..SHORT_BYTES_MAX].copy_from_slice(&key[..SHORT_BYTES_MAX]);
    u128::from_be_bytes(bytes)
}

/// A short key near the end of its text: two overlapping loads, or three single bytes, so that no
/// length needs a loop.
#[inline(never)]
fn near_the_end(key: &[u8]) -> u128 {
    if let (Some(first), Some(last)) = (key.first_chunk::<8>(), key.last_chunk::<8>()) {
        let last = u128::from(u64::from_le_bytes(*last)) << (8 * (key.len() - 8));
        return u128::from(u64::from_le_bytes(*first)) | last;
    }
    if let (Some(first), Some(last)) = (key.first_chunk::<4>(), key.last_chunk::<4>()) {
        let last = u128::from(u32::from_le_bytes(*last)) << (8 * (key.len() - 4));
        return u128::from(u32::from_le_bytes(*first)) | last;
    }
    match key.len() {
        0 => 0,
        length => {
            let byte = |place: usize| u128::from(key[place]) << (8 * place);
            byte(0) | byte(length / 2) | byte(length - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(key: &[u8]) -> Option<ShortKey> {
        ShortKey::within(key, 0..key.len())
    }

    #[test]
    fn a_key_is_the_same_wherever_it_lies_and_comes_back() {
        let text: Vec<u8> = (1..=40).collect();
        for length in 0..=SHORT_BYTES_MAX {
            for start in 0..text.len() - length {
                let key = start..start + length;
                let bytes = &text[key.clone()];
                let found = ShortKey::within(&text, key).unwrap();
                assert!(!found.is_none());
                assert_eq!(found, short(bytes).unwrap());
                let (place, found_length) = ShortKey::of_order(found.order());
                assert_eq!(&place[..found_length], bytes);
            }
        }
        assert_eq!(short(&text[..16]), None);
        assert!(ShortKey::default().is_none());
    }

    #[test]
    fn orders_are_those_of_bytes() {
        let mut keys: Vec<Vec<u8>> = vec![Vec::new()];
        for byte in [0, 1, 15, 16, 17, 254, 255] {
            for length in 1..18 {
                keys.push(vec![byte; length]);
                keys.push([vec![7; length - 1], vec![byte]].concat());
            }
        }
        let order = |key: &[u8]| match short(key) {
            Some(key) => key.order(),
            None => order_of_long(key),
        };
        for left in &keys {
            for right in &keys {
                let both_long = left.len().min(right.len()) > SHORT_BYTES_MAX;
                let found = order(left).cmp(&order(right));
                let ties = found.is_eq() && both_long;
                assert!(ties || found == left.cmp(right), "{left:?} {right:?}");
            }
        }
    }
}
