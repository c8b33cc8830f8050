//! How the values of one key become fewer before they leave a map: the combiner.
//!
//! A fold works twice: in the table, on values as the mapper emits them, and when sorted pieces
//! meet, on values as they were written. Both must have the same effect, so that a run does not
//! depend on how much memory its map had; [`check`] tests an own fold for that.

use crate::{codec::number, failure::Failure};

/// The longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 8 << 20;

/// A combiner: associative, and, since a key's values come from one map in the order of their
/// emission and from several in that of the maps, it need not be commutative. `State` is what the
/// table keeps for each key; a new key begins with the default.
pub trait Fold: Default + Send + 'static {
    /// Whether values become fewer. If they do not, they are sorted and never looked up.
    const COMBINES: bool = true;
    /// What a mapper emits beside a key.
    type Input<'a>: Copy;
    /// An input as the table holds it until it is folded.
    type Held: Copy + Default + Send;
    /// What the table keeps.
    type State: Copy + Default + Send;

    /// Keeps an input, in the arena if it is bytes.
    fn hold(&self, input: Self::Input<'_>, arena: &mut Arena) -> Result<Self::Held, FoldError>;

    /// Takes one more value of a key.
    fn fold(
        &self,
        state: &mut Self::State,
        held: Self::Held,
        arena: &mut Arena,
    ) -> Result<(), FoldError>;

    /// Hands out the values of a key as they are to be written, in the order of their emission.
    fn values(
        &self,
        state: &Self::State,
        arena: &Arena,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure>;

    /// Appends an emitted value as it is to be written: what [`Fold::values`] hands out of a state
    /// that took nothing else.
    fn write(&self, input: Self::Input<'_>, out: &mut Vec<u8>);

    /// Joins a written value to the one before it, of the same key, if they fold into one.
    fn join(&self, before: &mut Vec<u8>, value: &[u8]) -> Result<bool, Failure>;

    /// What folds written values where those of several maps come together: the fold itself, unless
    /// what a mapper emits says less than what is written.
    type Written: Fold;

    /// A written value as an input of that.
    fn read(value: &[u8]) -> Result<<Self::Written as Fold>::Input<'_>, Failure>;
}

/// Why a value could not be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// A sum left the range of its type.
    #[error("a sum exceeds 64 bits")]
    Overflow,
    /// A key exceeds its limit.
    #[error("a key is longer than {} bytes", crate::combine::KEY_BYTES_MAX)]
    KeyTooLong,
    /// A value exceeds its limit.
    #[error("a value is longer than {VALUE_BYTES_MAX} bytes")]
    ValueTooLong,
}

/// The memory of a table: keys and values, one behind the other, addressed by [`Slice`]s.
#[derive(Debug, Default)]
pub struct Arena {
    bytes: Vec<u8>,
    links: Vec<Link>,
    /// The value stored last; documents repeat, and so it is stored once.
    latest: Slice,
}

/// A piece of an [`Arena`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slice {
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// A value in a key's list.
#[derive(Debug, Clone, Copy)]
struct Link {
    value: Slice,
    /// The place of the next link plus one; 0 at the end.
    next: u32,
}

impl Arena {
    /// An arena with room for so many bytes. Room that is never used costs no memory.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ..Self::default() }
    }

    /// Keeps a copy of `bytes`.
    pub(crate) fn store(&mut self, bytes: &[u8]) -> Slice {
        let offset = u32::try_from(self.bytes.len()).expect("the memory budget is below 4 GiB");
        let length = u32::try_from(bytes.len()).expect("keys and values have limits below 4 GiB");
        self.bytes.extend_from_slice(bytes);
        Slice { offset, length }
    }

    /// The bytes of a slice.
    pub(crate) fn get(&self, slice: Slice) -> &[u8] {
        &self.bytes[slice.offset as usize..][..slice.length as usize]
    }

    /// How much memory is in use, in bytes.
    #[inline]
    pub(crate) fn used(&self) -> usize {
        self.bytes.len() + self.links.len() * size_of::<Link>()
    }

    /// Keeps a copy of `value`, or finds the one that was stored just before.
    fn intern(&mut self, value: &[u8]) -> Slice {
        if self.get(self.latest) != value {
            self.latest = self.store(value);
        }
        self.latest
    }
}

/// Adds numbers; a written value is a LEB128 varint.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum;

/// Keeps the largest number; a written value is a LEB128 varint.
#[derive(Debug, Clone, Copy, Default)]
pub struct Max;

impl Fold for Sum {
    type Input<'a> = u64;
    type Held = u64;
    type State = u64;

    #[inline]
    fn hold(&self, input: u64, _arena: &mut Arena) -> Result<u64, FoldError> {
        Ok(input)
    }

    #[inline]
    fn fold(&self, state: &mut u64, held: u64, _arena: &mut Arena) -> Result<(), FoldError> {
        *state = state.checked_add(held).ok_or(FoldError::Overflow)?;
        Ok(())
    }

    fn values(
        &self,
        state: &u64,
        _arena: &Arena,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (encoded, length) = varint(*state);
        each(&encoded[..length])
    }

    fn write(&self, input: u64, out: &mut Vec<u8>) {
        put_varint(out, input);
    }

    fn join(&self, before: &mut Vec<u8>, value: &[u8]) -> Result<bool, Failure> {
        let overflow = || Failure::user(FoldError::Overflow.to_string());
        let sum = number(before)?.checked_add(number(value)?).ok_or_else(overflow)?;
        before.clear();
        put_varint(before, sum);
        Ok(true)
    }

    type Written = Self;

    #[inline]
    fn read(value: &[u8]) -> Result<u64, Failure> {
        number(value)
    }
}

/// Counts how often a key is emitted; a written value is a LEB128 varint, as [`Sum`]'s.
#[derive(Debug, Clone, Copy, Default)]
pub struct Count;

impl Fold for Count {
    type Input<'a> = ();
    type Held = ();
    type State = u64;

    #[inline]
    fn hold(&self, (): (), _arena: &mut Arena) -> Result<(), FoldError> {
        Ok(())
    }

    #[inline]
    fn fold(&self, state: &mut u64, (): (), arena: &mut Arena) -> Result<(), FoldError> {
        Sum.fold(state, 1, arena)
    }

    fn values(
        &self,
        state: &u64,
        arena: &Arena,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        Sum.values(state, arena, each)
    }

    fn write(&self, (): (), out: &mut Vec<u8>) {
        Sum.write(1, out);
    }

    fn join(&self, before: &mut Vec<u8>, value: &[u8]) -> Result<bool, Failure> {
        Sum.join(before, value)
    }

    type Written = Sum;

    #[inline]
    fn read(value: &[u8]) -> Result<u64, Failure> {
        number(value)
    }
}

impl Fold for Max {
    type Input<'a> = u64;
    type Held = u64;
    type State = u64;

    #[inline]
    fn hold(&self, input: u64, _arena: &mut Arena) -> Result<u64, FoldError> {
        Ok(input)
    }

    #[inline]
    fn fold(&self, state: &mut u64, held: u64, _arena: &mut Arena) -> Result<(), FoldError> {
        *state = held.max(*state);
        Ok(())
    }

    fn values(
        &self,
        state: &u64,
        arena: &Arena,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        Sum.values(state, arena, each)
    }

    fn write(&self, input: u64, out: &mut Vec<u8>) {
        put_varint(out, input);
    }

    fn join(&self, before: &mut Vec<u8>, value: &[u8]) -> Result<bool, Failure> {
        let largest = number(before)?.max(number(value)?);
        before.clear();
        put_varint(before, largest);
        Ok(true)
    }

    type Written = Self;

    #[inline]
    fn read(value: &[u8]) -> Result<u64, Failure> {
        number(value)
    }
}

/// Keeps every value, in the order of emission.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keep;

impl Fold for Keep {
    const COMBINES: bool = false;
    type Input<'a> = &'a [u8];
    type Held = Slice;
    type State = List;

    fn hold(&self, input: &[u8], arena: &mut Arena) -> Result<Slice, FoldError> {
        Distinct.hold(input, arena)
    }

    fn fold(&self, state: &mut List, held: Slice, arena: &mut Arena) -> Result<(), FoldError> {
        append(state, held, arena);
        Ok(())
    }

    fn values(
        &self,
        state: &List,
        arena: &Arena,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        Distinct.values(state, arena, each)
    }

    #[inline]
    fn write(&self, input: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(input);
    }

    fn join(&self, _before: &mut Vec<u8>, _value: &[u8]) -> Result<bool, Failure> {
        Ok(false)
    }

    type Written = Self;

    #[inline]
    fn read(value: &[u8]) -> Result<&[u8], Failure> {
        Ok(value)
    }
}

/// Keeps values, dropping one that equals the key's last: documents come one after the other, so
/// each is kept once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Distinct;

/// A key's list of values, as places of links plus one; 0 for none.
#[derive(Debug, Clone, Copy, Default)]
pub struct List {
    first: u32,
    last: u32,
}

impl Fold for Distinct {
    type Input<'a> = &'a [u8];
    type Held = Slice;
    type State = List;

    #[inline]
    fn hold(&self, input: &[u8], arena: &mut Arena) -> Result<Slice, FoldError> {
        if input.len() > VALUE_BYTES_MAX {
            return Err(FoldError::ValueTooLong);
        }
        Ok(arena.intern(input))
    }

    #[inline]
    fn fold(&self, state: &mut List, held: Slice, arena: &mut Arena) -> Result<(), FoldError> {
        let last = (state.last as usize).checked_sub(1).map(|last| arena.links[last].value);
        if !last.is_some_and(|last| last == held || arena.get(last) == arena.get(held)) {
            append(state, held, arena);
        }
        Ok(())
    }

    fn values(
        &self,
        state: &List,
        arena: &Arena,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut place = state.first;
        while place != 0 {
            let link = arena.links[place as usize - 1];
            each(arena.get(link.value))?;
            place = link.next;
        }
        Ok(())
    }

    fn write(&self, input: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(input);
    }

    fn join(&self, before: &mut Vec<u8>, value: &[u8]) -> Result<bool, Failure> {
        Ok(before == value)
    }

    type Written = Self;

    #[inline]
    fn read(value: &[u8]) -> Result<&[u8], Failure> {
        Ok(value)
    }
}

/// Puts a value behind a key's others.
fn append(state: &mut List, value: Slice, arena: &mut Arena) {
    arena.links.push(Link { value, next: 0 });
    let place = u32::try_from(arena.links.len()).expect("the memory budget is below 4 GiB");
    match (state.last as usize).checked_sub(1) {
        Some(last) => arena.links[last].next = place,
        None => state.first = place,
    }
    state.last = place;
}

/// The longest varint of 64 bits, in bytes.
pub(crate) const VARINT_BYTES_MAX: usize = 10;

/// `number` as a LEB128 varint, and its length.
#[inline]
pub(crate) fn varint(mut number: u64) -> ([u8; VARINT_BYTES_MAX], usize) {
    let (mut encoded, mut last) = ([0; VARINT_BYTES_MAX], 0);
    while number >= 0x80 {
        encoded[last] = number as u8 | 0x80;
        number >>= 7;
        last += 1;
    }
    encoded[last] = number as u8;
    (encoded, last + 1)
}

/// Appends `number` as a LEB128 varint.
#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, number: u64) {
    if number < 0x80 {
        return out.push(number as u8);
    }
    let (encoded, length) = varint(number);
    out.extend_from_slice(&encoded[..length]);
}

/// Takes a varint from the front of `bytes`: the number and its length, unless it is cut off or
/// exceeds 64 bits.
#[inline]
pub(crate) fn get_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0;
    for (place, &byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        if place == VARINT_BYTES_MAX - 1 && byte > 1 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some((number, place + 1));
        }
    }
    None
}

/// What a fold makes of these values of one key: taken in one state, written one by one and joined,
/// and written one by one and read. The same, if the fold is one.
///
/// # Errors
/// What differs, or what the fold refuses.
pub fn check<F: Fold>(inputs: &[F::Input<'_>]) -> Result<(), Failure> {
    let fold = F::default();
    let mut written: Vec<Vec<u8>> = Vec::new();
    let mut joined: Vec<Vec<u8>> = Vec::new();
    for input in inputs {
        let mut value = Vec::new();
        fold.write(*input, &mut value);
        written.push(value.clone());
        let fits = match joined.last_mut() {
            Some(before) => fold.join(before, &value)?,
            None => false,
        };
        if !fits {
            joined.push(value);
        }
    }
    let folded = in_one_state(&fold, inputs.iter().copied().map(Ok))?;
    let read = written.iter().map(|value| F::read(value));
    let read = in_one_state(&F::Written::default(), read)?;
    if folded == joined && folded == read {
        return Ok(());
    }
    let message = format!(
        "folded in one state: {folded:?}; written and joined: {joined:?}; written and read: {read:?}"
    );
    Err(Failure::fatal(message))
}

/// What a state hands out that took these inputs.
fn in_one_state<'a, F: Fold>(
    fold: &F,
    inputs: impl Iterator<Item = Result<F::Input<'a>, Failure>>,
) -> Result<Vec<Vec<u8>>, Failure> {
    let refuse = |error: FoldError| Failure::user(error.to_string());
    let (mut state, mut arena) = (F::State::default(), Arena::default());
    for input in inputs {
        let held = fold.hold(input?, &mut arena).map_err(refuse)?;
        fold.fold(&mut state, held, &mut arena).map_err(refuse)?;
    }
    let mut folded = Vec::new();
    fold.values(&state, &arena, &mut |value| {
        folded.push(value.to_vec());
        Ok(())
    })?;
    Ok(folded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_come_to_the_same_in_a_state_and_when_joined() {
        check::<Sum>(&[1, 2, u64::MAX - 3]).unwrap();
        check::<Max>(&[1, 300, 2, 300]).unwrap();
        check::<Count>(&[(); 300]).unwrap();
        check::<Distinct>(&[b"a", b"a", b"b", b"", b"", b"a"]).unwrap();
        check::<Keep>(&[b"a", b"a", b"", b"b"]).unwrap();
        assert!(check::<Sum>(&[1, u64::MAX]).is_err());
    }

    #[test]
    fn varints_of_every_length_come_back() {
        for shift in 0..64 {
            for near in [0, 1] {
                let expected = (1_u64 << shift) - near;
                let mut encoded = Vec::new();
                put_varint(&mut encoded, expected);
                assert_eq!(get_varint(&encoded), Some((expected, encoded.len())));
                assert_eq!(get_varint(&encoded[..encoded.len() - 1]), None);
            }
        }
        assert_eq!(get_varint(&[0xff; 11]), None);
        assert!(number(&[1, 1]).is_err());
    }

    #[test]
    fn a_sum_that_overflows_is_refused() {
        let (mut state, mut arena) = (u64::MAX, Arena::default());
        assert_eq!(Sum.fold(&mut state, 1, &mut arena), Err(FoldError::Overflow));
        let mut before = Vec::new();
        put_varint(&mut before, u64::MAX);
        assert!(Sum.join(&mut before, &[1]).is_err());
    }

    #[test]
    fn distinct_keeps_one_of_equal_neighbours() {
        let (mut state, mut other, mut arena) =
            (List::default(), List::default(), Arena::default());
        for value in [b"a", b"a", b"b", b"b", b"a"] {
            let held = Distinct.hold(value, &mut arena).unwrap();
            Distinct.fold(&mut state, held, &mut arena).unwrap();
            let held = Distinct.hold(b"c", &mut arena).unwrap();
            Distinct.fold(&mut other, held, &mut arena).unwrap();
        }
        let mut values = Vec::new();
        let mut keep = |value: &[u8]| {
            values.push(value.to_vec());
            Ok(())
        };
        Distinct.values(&state, &arena, &mut keep).unwrap();
        Distinct.values(&other, &arena, &mut keep).unwrap();
        assert_eq!(values, [b"a", b"b", b"a", b"c"]);
    }
}
