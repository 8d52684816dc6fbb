//! Prompt embeddings kept on disk, so that a second run of a prompt skips the text encoder.

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// A folder of prompt embeddings, found by everything that decides them: encoder weights, graph and token ids.
///
/// The cache never makes a run fail: what cannot be read is computed again, what cannot be written is left out.
#[derive(Clone, Debug)]
pub struct EmbeddingCache {
    folder: PathBuf,
}

/// First bytes of an entry; the number is the layout's.
const MAGIC: &[u8; 8] = b"TURBOEM1";

impl EmbeddingCache {
    /// A cache in this folder, which is made when the first embedding is stored.
    pub fn new(folder: &Path) -> Self {
        EmbeddingCache { folder: folder.to_path_buf() }
    }

    /// The key of one prompt under one encoder: digests of its entries and the padded token ids.
    pub fn key(digests: &[&str], ids: &[i64]) -> String {
        let mut hash = Sha256::new();
        for digest in digests {
            hash.update(digest.as_bytes());
            hash.update([0]);
        }
        for id in ids {
            hash.update(id.to_le_bytes());
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.embedding"))
    }

    /// The stored embedding of `elements` f32 values, if there is a whole and undamaged one.
    pub fn get(&self, key: &str, elements: usize) -> Option<Vec<f32>> {
        let bytes = std::fs::read(self.path(key)).ok()?;
        let body = bytes.strip_prefix(MAGIC)?;
        let (digest, body) = body.split_at_checked(32)?;
        if Sha256::digest(body).as_slice() != digest || body.len() != elements.checked_mul(4)? {
            return None;
        }
        Some(body.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    /// Stores an embedding, if the folder can be written.
    pub fn put(&self, key: &str, embedding: &[f32]) {
        let body: Vec<u8> = embedding.iter().flat_map(|x| x.to_le_bytes()).collect();
        let store = || -> std::io::Result<()> {
            std::fs::create_dir_all(&self.folder)?;
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            file.write_all(MAGIC)?;
            file.write_all(Sha256::digest(&body).as_slice())?;
            file.write_all(&body)?;
            file.persist(self.path(key))?;
            Ok(())
        };
        // A cache that cannot be written only costs the next run its time.
        drop(store());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_come_back_and_damage_is_a_miss() {
        let folder = tempfile::tempdir().unwrap();
        let cache = EmbeddingCache::new(&folder.path().join("embeddings"));
        let key = EmbeddingCache::key(&["a", "b"], &[5, 1, 0]);
        assert_ne!(key, EmbeddingCache::key(&["ab", ""], &[5, 1, 0]));
        assert_ne!(key, EmbeddingCache::key(&["a", "b"], &[5, 0, 1]));
        assert_eq!(cache.get(&key, 3), None);
        cache.put(&key, &[1.0, -2.5, 0.0]);
        assert_eq!(cache.get(&key, 3), Some(vec![1.0, -2.5, 0.0]));
        assert_eq!(cache.get(&key, 4), None);
        let path = cache.path(&key);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(cache.get(&key, 3), None);
    }
}
