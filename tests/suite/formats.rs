//! Foreign files through the program: MetaImage scans, labelled data in the layouts of their archives, published cubes.

mod cubes;
mod metaimage;
mod recipes;
