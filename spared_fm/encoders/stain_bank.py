"""The built-in encoder: a fixed bank of stain-separated, multi-scale filters with pooled statistics.

There is nothing to download and nothing learned or drawn at random: every number in the module follows from a formula or
a published table. It is the embedded default, and a floor for every later comparison.

How a patch becomes a vector
    1. Optical density ``-log10(max(rgb, 1/255))`` (Beer–Lambert), then haematoxylin, eosin and residual amounts by the fixed
       matrix of Ruifrok & Johnston 2001 (Anal Quant Cytol Histol 23:291). Two more views of the same pixels: mean density
       (darkness), and the chromaticity plane of the hue–saturation–density model of van der Laak et al. 2000 (Cytometry
       39:275), in which hue doesn't depend on how much stain there is.
    2. A pyramid by 2 × 2 means, levels L0 … L4 (0.5, 1, 2, 4, 8 µm per pixel for the default 112 µm at 224 px). On each
       level: a binomial blur (sigma 1 pixel; the discrete scale-space of Lindeberg 1990, IEEE PAMI 12:234) and central
       differences, so first and second Gaussian derivatives in every direction (steerable: Freeman & Adelson 1991, IEEE
       PAMI 13:891). They enter only through quantities that don't depend on direction: gradient magnitude, Laplacian,
       and the eigenvalues of the Hessian (both bright: a blob, nucleus-like; one bright: a ridge, fibre-like).
    3. Pooling over the patch: means, deviations, skewness, quantiles, soft histograms, counts of peaks, correlations.

Energies and chromaticities are compressed by roots, so that every value lies well inside float16 (|v| < 1e3).

Blocks of the vector (``StainBank.blocks`` maps each name to its slice). "Amounts" are H, E, residual and density; on L0 only
H and density are filtered, since the finest detail is common to the stains.

==================  ====  ==================================================================================================
name                size  what
==================  ====  ==================================================================================================
"""
