//! The numbers of images in a mount, which are shorter than their ids.

use std::collections::HashMap;

use super::node::ImageNo;
use crate::digest::Digest;
use crate::sync::RwLock;

/// The numbers that images got.
#[derive(Default)]
pub(super) struct ImageNumbers(RwLock<(HashMap<Digest, ImageNo>, Vec<Digest>)>);

impl ImageNumbers {
    /// Returns the number of an image in this mount.
    pub(super) fn number(&self, id: &Digest) -> ImageNo {
        if let Some(number) = self.0.read().0.get(id) {
            return *number;
        }
        let mut numbers = self.0.write();
        let (by_id, ids) = &mut *numbers;
        *by_id.entry(*id).or_insert_with(|| {
            ids.push(*id);
            (ids.len() - 1) as ImageNo
        })
    }

    /// Returns the image with this number.
    pub(super) fn id(&self, number: ImageNo) -> Digest {
        self.0.read().1[number as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_images_stay() {
        let numbers = ImageNumbers::default();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let (x, y) = (numbers.number(&a), numbers.number(&b));
        assert_ne!(x, y);
        assert_eq!((numbers.number(&a), numbers.id(x), numbers.id(y)), (x, a, b));
    }
}
