//! Where a page of pairs ends and the next one begins, as it is told to clients: they give it back and
//! need not know what it says. Servers make it, and who puts pages of several groups together.

/// The version of a page token, its first byte.
pub const PAGE_TOKEN_VERSION: u8 = 1;

/// The token of a page that ends with this key.
pub fn page_token(last: &[u8]) -> Vec<u8> {
    [&[PAGE_TOKEN_VERSION], last].concat()
}
