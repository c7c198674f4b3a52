"""Mean-field theory of signal propagation, what wide random nets do before they are trained; gradients of losses."""

from depthlab.theory.correlation import correlation_chi, correlation_fixed_point, correlation_map
from depthlab.theory.depth import (
    Phase,
    Profile,
    backward_slope,
    correlation_depth_scale,
    depth_scale,
    forward_slope,
    overflow_depth,
    phase,
    profile,
    trainable_depth,
)
from depthlab.theory.losses import logit_gradient
from depthlab.theory.recurrence import TimeProfile, time_profile
from depthlab.theory.regions import arrangement_regions, expected_regions, foldable_regions, most_regions
from depthlab.theory.residual import residual_chi, residual_variance_map
from depthlab.theory.scope import batch_norm_backward_slope, check_applies
from depthlab.theory.variance import chi, critical_sigma_w, fixed_point, variance_map

__all__ = [
    "Phase",
    "Profile",
    "TimeProfile",
    "arrangement_regions",
    "backward_slope",
    "batch_norm_backward_slope",
    "check_applies",
    "chi",
    "correlation_chi",
    "correlation_depth_scale",
    "correlation_fixed_point",
    "correlation_map",
    "critical_sigma_w",
    "depth_scale",
    "expected_regions",
    "fixed_point",
    "foldable_regions",
    "forward_slope",
    "logit_gradient",
    "most_regions",
    "overflow_depth",
    "phase",
    "profile",
    "residual_chi",
    "residual_variance_map",
    "time_profile",
    "trainable_depth",
    "variance_map",
]
