//! Data about images, kept between requests.

pub mod times;
