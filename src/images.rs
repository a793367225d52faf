//! What is known of images, kept between questions.

pub mod times;
