//! Which shard a key belongs to. Part of the contract: clients, servers and the shard controller
//! must agree on it for ever.

use xxhash_rust::xxh3::xxh3_64;

/// The number of shards of a cluster that was created without saying otherwise.
pub const SHARDS_DEFAULT: u32 = 256;

/// The shard, from 0, of `key` in a cluster of `shards` shards (at least 1).
///
/// Hashed is the key's tag: what stands between the first `{` and the first `}` behind it, if that
/// is not empty, so that keys with one tag share a shard; otherwise the whole key.
pub fn shard_of(key: &[u8], shards: u32) -> u32 {
    let shard = xxh3_64(tag(key)) % u64::from(shards.max(1));
    u32::try_from(shard).expect("a remainder is below its 32-bit divisor")
}

/// The shard of all keys with this prefix, if they must be in one: if it holds a whole tag.
pub fn shard_of_prefix(prefix: &[u8], shards: u32) -> Option<u32> {
    if shards == 1 {
        return Some(0);
    }
    let open = prefix.iter().position(|&byte| byte == b'{')?;
    let inside = prefix.iter().skip(open + 1).position(|&byte| byte == b'}');
    inside.filter(|length| *length > 0).map(|_| shard_of(prefix, shards))
}

/// The shard of a lease, which its id contains: its lowest [`LEASE_SHARD_BITS`].
pub fn shard_of_lease(lease_id: u64) -> u32 {
    u32::try_from(lease_id & ((1 << LEASE_SHARD_BITS) - 1)).expect("the bits fit")
}

/// How many bits of a lease's id are its shard.
pub const LEASE_SHARD_BITS: u32 = 14;

fn tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&byte| byte == b'{') else { return key };
    let inside = &key[open + 1..];
    match inside.iter().position(|&byte| byte == b'}') {
        Some(length) if length > 0 => &inside[..length],
        _ => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_one_tag_share_a_shard() {
        assert_eq!(shard_of(b"{user7}/name", 256), shard_of(b"x{user7}y{z}", 256));
        assert_eq!(shard_of(b"{user7}/name", 256), shard_of(b"user7", 256));
    }

    #[test]
    fn an_empty_or_open_tag_hashes_the_whole_key() {
        assert_eq!(tag(b"a{}b"), b"a{}b");
        assert_eq!(tag(b"a{b"), b"a{b");
        assert_eq!(tag(b"}a{b}"), b"b");
    }

    #[test]
    fn placement_never_changes() {
        let placed: Vec<u32> =
            [&b""[..], b"a", b"key", b"flotilla"].iter().map(|key| shard_of(key, 256)).collect();
        assert_eq!(placed, PINNED);
    }

    const PINNED: [u32; 4] = [194, 31, 227, 203];
}
