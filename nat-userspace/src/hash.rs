//! Maps for what packets ask for: a hash that is quick on a few words, and seeded, so that nobody outside can choose
//! keys that fall together (behaviour ATK-06).

/// A hash map.
pub type HashMap<K, V> = std::collections::HashMap<K, V, ahash::RandomState>;
/// A hash set.
pub type HashSet<K> = std::collections::HashSet<K, ahash::RandomState>;
