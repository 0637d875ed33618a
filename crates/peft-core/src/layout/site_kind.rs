//! What is fixed about a site.

use crate::adapter::site_type::SiteKind;

/// The fixed part of a site.
#[derive(Clone, Debug)]
pub(crate) struct SiteHead {
    pub(crate) kind: SiteKind,
    pub(crate) width: usize,
    /// Of what goes into the layer around the site.
    pub(crate) input_width: usize,
    pub(crate) heads: usize,
    pub(crate) name: &'static str,
    /// Whether the model leaves out the sublayer's end where an adapter asks for it.
    pub(crate) optional_end: bool,
}
