//! Encodes a place in the listing of a changing folder as a number.

/// How far a listing of a folder has come, and where it ends. The kernel passes it back as a number. Without OPENDIR this
/// number is all that distinguishes two listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The fork's cookie of the entry that was listed last.
    pub(super) at: u64,
    /// See `Fork::end_of_listing`.
    pub(super) end: u64,
}

impl Place {
    /// The bit that marks a number as a place. Such a number is still positive.
    const MARK: u64 = 1 << 62;
    const BITS: u32 = 31;

    /// Returns the number, unless `at` or `end` is too large.
    pub(super) fn cookie(self) -> Option<u64> {
        let fits = self.at >> Self::BITS == 0 && self.end >> Self::BITS == 0;
        fits.then_some(Self::MARK | self.end << Self::BITS | self.at)
    }

    /// Decodes a number, if it is a place.
    pub(super) fn of(cookie: u64) -> Option<Self> {
        let low = (1 << Self::BITS) - 1;
        (cookie & Self::MARK != 0).then_some(Self { at: cookie & low, end: cookie >> Self::BITS & low })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_listing_is_a_positive_number_and_comes_back() {
        const MOST: u64 = (1 << 31) - 1;
        for (at, end) in [(0, 0), (1, 7), ((1 << 30) + 5, 5), (MOST, MOST)] {
            let place = Place { at, end };
            let cookie = place.cookie().unwrap();
            assert!(i64::try_from(cookie).is_ok() && Place::of(cookie) == Some(place));
        }
        for (at, end) in [(MOST + 1, 0), (0, MOST + 1)] {
            assert_eq!(Place { at, end }.cookie(), None);
        }
        for cookie in [0, 1, 2, 1 << 30, MOST + 3] {
            assert_eq!(Place::of(cookie), None);
        }
    }
}
