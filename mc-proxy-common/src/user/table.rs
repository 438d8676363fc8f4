//! A map as a table of typed entries.

use std::{io, marker::PhantomData, os::fd::BorrowedFd};

use aya::Pod;

use super::{MapInfo, sys};

/// Entries in one system call: few enough that the kernel's copy of a batch stays small.
const CHUNK: usize = 16_384;

/// A hash, trie or array map, of which keys and values have been checked to have the sizes of `K` and `V`.
#[derive(Clone, Copy, Debug)]
pub struct Table<'fd, K, V> {
    map: BorrowedFd<'fd>,
    info: MapInfo,
    entry: PhantomData<(K, V)>,
}

/// Why entries were not read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// No room for another entry.
    #[error("the map is full: it holds {max_entries} entries")]
    Full {
        /// Its size.
        max_entries: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another refusal.
    #[error("{operation}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl<'fd, K: Pod, V: Pod> Table<'fd, K, V> {
    /// The map as a table.
    ///
    /// # Errors
    /// `InvalidInput` when the map's keys or values have other sizes, or values for each CPU.
    pub fn new(map: BorrowedFd<'fd>) -> io::Result<Self> {
        let info = MapInfo::of(map)?;
        let is_per_cpu = matches!(info.kind, 5 | 6 | 10 | 21);
        if is_per_cpu || info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a map of another shape: {info:?}")));
        }
        Ok(Self { map, info, entry: PhantomData })
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lookup(&self, key: &K) -> Result<Option<V>, TableError> {
        let mut value = zeroed::<V>(1);
        // SAFETY: `new` compared the sizes of key and value with the map's.
        match unsafe { sys::lookup(self.map, bytes(key), value.as_mut_ptr().cast()) } {
            Ok(()) => Ok(value.pop()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.refused("looking up an entry", source)),
        }
    }

    /// Adds an entry, or replaces the value of one that is there; `true` if it was added.
    ///
    /// # Errors
    /// [`TableError::Full`].
    pub fn upsert(&self, key: &K, value: &V) -> Result<bool, TableError> {
        // SAFETY: `new` compared the sizes of key and value with the map's.
        match unsafe { sys::update(self.map, bytes(key), bytes(value), sys::Update::New) } {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(self.refused("adding an entry", error)),
        }
        // SAFETY: as above.
        unsafe { sys::update(self.map, bytes(key), bytes(value), sys::Update::Any) }
            .map(|()| false)
            .map_err(|error| self.refused("replacing an entry", error))
    }

    /// Removes an entry; `false` if it was not there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, key: &K) -> Result<bool, TableError> {
        // SAFETY: `new` compared the size of the key with the map's.
        match unsafe { sys::delete(self.map, bytes(key)) } {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(self.refused("removing an entry", source)),
        }
    }

    /// Adds or replaces entries, in batches where the kernel takes them. A batch that ends early is resumed with one
    /// entry by itself, so that a passing shortage does not end the whole.
    ///
    /// # Errors
    /// [`TableError::Full`]; entries before the one that failed are in the map.
    pub fn upsert_all(&self, keys: &[K], values: &[V]) -> Result<(), TableError> {
        assert_eq!(keys.len(), values.len(), "a value for each key");
        self.resume(keys.len(), |range, is_single| {
            if is_single {
                return self.upsert(&keys[range.start], &values[range.start]).map(|_| 1);
            }
            let (keys, values) = (&keys[range.clone()], &values[range]);
            // SAFETY: both slices have `keys.len()` elements of the map's sizes.
            let batch =
                unsafe { sys::update_batch(self.map, keys.as_ptr().cast(), values.as_ptr().cast(), keys.len()) };
            Ok(batch.done)
        })
    }

    /// Removes entries; those that are not there are passed over.
    ///
    /// # Errors
    /// When the kernel refuses; entries before the one that failed are gone.
    pub fn remove_all(&self, keys: &[K]) -> Result<(), TableError> {
        self.resume(keys.len(), |range, is_single| {
            if is_single {
                return self.remove(&keys[range.start]).map(|_| 1);
            }
            let keys = &keys[range];
            // SAFETY: the slice has `keys.len()` elements of the map's key size.
            let batch = unsafe { sys::delete_batch(self.map, keys.as_ptr().cast(), keys.len()) };
            Ok(batch.done)
        })
    }

    /// All entries, in no particular order. Nobody else may be writing to the map.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn entries(&self) -> Result<Vec<(K, V)>, TableError> {
        match self.entries_in_batches() {
            Err(TableError::Refused { source, .. }) if is_unsupported(&source) => self.entries_one_by_one(),
            result => result,
        }
    }

    fn entries_in_batches(&self) -> Result<Vec<(K, V)>, TableError> {
        let mut entries = Vec::new();
        let mut chunk = CHUNK.min(self.info.max_entries as usize).max(1);
        // A position is a bucket number for a hash and a key for the others.
        let position_bytes = size_of::<K>().max(size_of::<u32>());
        let (mut position, mut next) = (vec![0_u8; position_bytes], vec![0_u8; position_bytes]);
        let mut is_first = true;
        loop {
            let (mut keys, mut values) = (zeroed::<K>(chunk), zeroed::<V>(chunk));
            let from = if is_first { std::ptr::null() } else { position.as_ptr() };
            let into = (keys.as_mut_ptr().cast(), values.as_mut_ptr().cast());
            // SAFETY: `keys` and `values` have room for `chunk` elements of the map's sizes, the positions for its key,
            // and `position` is what the previous call wrote.
            let batch = unsafe { sys::lookup_batch(self.map, from, next.as_mut_ptr(), into, chunk) };
            let is_last = match batch.result {
                Ok(()) => false,
                // The end; what was found before it counts.
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                // One bucket of the hash holds more than the whole buffer.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && chunk < self.info.max_entries as usize => {
                    chunk = (chunk * 2).min(self.info.max_entries as usize);
                    continue;
                }
                Err(source) => return Err(self.refused("reading entries", source)),
            };
            entries.extend(keys.into_iter().zip(values).take(batch.done));
            if is_last || (batch.done == 0 && !is_first) {
                return Ok(entries);
            }
            std::mem::swap(&mut position, &mut next);
            is_first = false;
        }
    }

    fn entries_one_by_one(&self) -> Result<Vec<(K, V)>, TableError> {
        let mut entries: Vec<(K, V)> = Vec::new();
        loop {
            let from = entries.last().map_or(std::ptr::null(), |(key, _)| bytes(key));
            let mut next = zeroed::<K>(1);
            // SAFETY: `from` is null or a key, `next` has room for one; `new` compared the size of the key.
            match unsafe { sys::next_key(self.map, from, next.as_mut_ptr().cast()) } {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(entries),
                Err(source) => return Err(self.refused("reading keys", source)),
            }
            let key = next[0];
            match self.lookup(&key)? {
                Some(value) => entries.push((key, value)),
                None => return Err(self.refused("reading keys", io::Error::other("another process writes to the map"))),
            }
        }
    }

    /// Calls `step` with what is left until nothing is; a step that gets nothing done is repeated with one entry.
    fn resume(
        &self,
        count: usize,
        mut step: impl FnMut(std::ops::Range<usize>, bool) -> Result<usize, TableError>,
    ) -> Result<(), TableError> {
        let mut done = 0;
        let mut is_single = false;
        while done < count {
            let end = if is_single { done + 1 } else { count.min(done + CHUNK) };
            let progress = step(done..end, is_single)?;
            // After a batch that ended early its next entry goes alone: either it fails with its own error, or it was
            // a passing shortage and batches go on.
            is_single = !is_single && progress < end - done;
            done += progress;
        }
        Ok(())
    }

    fn refused(&self, operation: &'static str, source: io::Error) -> TableError {
        match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => TableError::Full { max_entries: self.info.max_entries, source },
            _ => TableError::Refused { operation, source },
        }
    }
}

/// `ENOTSUPP` of the kernel's inside is what a map type without the command answers.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | 524))
}

fn bytes<T: Pod>(value: &T) -> *const u8 {
    std::ptr::from_ref(value).cast()
}

fn zeroed<T: Pod>(count: usize) -> Vec<T> {
    // SAFETY: every bit pattern is a value of a `Pod` type, zeros among them.
    let zero = unsafe { std::mem::zeroed::<T>() };
    vec![zero; count]
}
