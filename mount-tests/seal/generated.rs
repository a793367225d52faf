//! Generated forks: whatever was done to them, pf restores their seals.
