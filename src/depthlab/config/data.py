"""Data sets, and what is done to one before and while it is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field

from depthlab.config.fields import ConfigError, check_fields, choice, flag, number


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set before it is loaded: counts of images, image shape and number of classes."""

    train: int
    test: int
    channels: int
    size: int
    classes: int


DATASETS = {
    "digits": DatasetFacts(train=1438, test=359, channels=1, size=8, classes=10),
    "mnist": DatasetFacts(train=60_000, test=10_000, channels=1, size=28, classes=10),
    "fashion_mnist": DatasetFacts(train=60_000, test=10_000, channels=1, size=28, classes=10),
    "cifar10": DatasetFacts(train=50_000, test=10_000, channels=3, size=32, classes=10),
    "cifar100": DatasetFacts(train=50_000, test=10_000, channels=3, size=32, classes=100),
    "synthetic": DatasetFacts(train=1_000, test=200, channels=3, size=8, classes=10),
    "spirals": DatasetFacts(train=2_000, test=2_000, channels=2, size=1, classes=2),
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, cut how, augmented how."""

    name: str = choice("digits", tuple(DATASETS), "data set")
    classes: tuple[int, ...] = field(
        default=(),
        metadata={"about": "labels that are kept, and become 0, 1, ... in this order ([]: all)"},
    )
    train_size: int | None = number(None, "class-balanced subset of the training part (null: all)", low=1)
    validation_fraction: float = number(0.1, "share of the training data cut off to choose models on", below=1)
    pool_size: int | None = number(None, "class-balanced subset that training and validation share (null: all)", low=1)
    folds: int | None = number(None, "cross-validation: parts of the training data (null: validation_fraction)", low=2)
    fold: int = number(0, "cross-validation: which part is validation, from 0")
    split_seed: int = number(0, "which validation split and subset; apart from seed, so that seeds share them")
    part: int = number(0, "which of the disjoint subsets of train_size images; models of all parts show variance")
    crop_padding: int = number(0, "pad by this many pixels, then crop at random to the old size")
    flip: bool = flag(False, "mirror left to right at random")
    cutout: int = number(0, "side of a random square set to the mean colour")
    label_noise: float = number(0.0, "share of training labels replaced by another class", high=1)

    def __post_init__(self) -> None:
        check_fields(self, "data")
        facts = DATASETS[self.name]
        self._check_classes(facts)
        self._check_parts()
        if self.crop_padding >= facts.size:
            raise ConfigError(
                f"data.crop_padding={self.crop_padding} is too large for {self.name} images of {facts.size} pixels; "
                f"choose less than {facts.size}"
            )
        if self.cutout > facts.size:
            raise ConfigError(
                f"data.cutout={self.cutout} is larger than {self.name} images; choose at most {facts.size}"
            )
        if facts.size == 1 and (self.flip or self.cutout):
            raise ConfigError(
                f"data.flip={str(self.flip).lower()} and data.cutout={self.cutout} are for images, and {self.name} are "
                f"points, images of one pixel; leave them at false and 0"
            )

    def _check_parts(self) -> None:
        images, classes = self._kept
        pool = self.pool_size or images
        if not classes <= pool <= images:
            raise ConfigError(
                f"data.pool_size={pool} must be between {classes} (one image a class) and {images} (the "
                f"training images of {self.name})"
            )
        self._check_folds(classes, pool)
        validation = self.validation_images
        left = pool - validation
        if left < classes or validation < 1:
            raise ConfigError(
                f"data.validation_fraction={self.validation_fraction} leaves {left} images of {self.name} to train on "
                f"and {validation} to validate on; choose it so that both hold some, such as 0.1"
            )
        if self.train_size is not None and not classes <= self.train_size <= left:
            raise ConfigError(
                f"data.train_size={self.train_size} must be between {classes} (one image a class) and {left} "
                f"(what the validation split leaves of {self.name})"
            )
        if self.part and self.train_size is None:
            raise ConfigError(
                f"data.part={self.part} needs subsets to choose from; set data.train_size, or leave data.part at 0"
            )
        if self.train_size is not None and (self.part + 1) * self.train_size > left:
            raise ConfigError(
                f"data.part={self.part} is beyond the {left} images that the validation split leaves of {self.name}; "
                f"with data.train_size={self.train_size} the last part is {left // self.train_size - 1}"
            )

    def _check_folds(self, classes: int, pool: int) -> None:
        if self.folds is None:
            if self.fold:
                raise ConfigError(f"data.fold={self.fold} has no effect without data.folds; set both, or neither")
            return
        if self.validation_fraction != DataConfig.validation_fraction:
            raise ConfigError(
                f"data.validation_fraction={self.validation_fraction} and data.folds={self.folds} both say which "
                f"images are validation; leave validation_fraction at {DataConfig.validation_fraction} or folds at null"
            )
        if self.fold >= self.folds:
            raise ConfigError(
                f"data.fold={self.fold} must be less than data.folds={self.folds}: folds are counted from 0"
            )
        if self.folds > pool - classes:
            raise ConfigError(f"data.folds={self.folds} is too many for {pool} images; choose at most {pool - classes}")

    @property
    def validation_images(self) -> int:
        """How many images are validated on."""
        pool = self.pool_size or self._kept[0]
        if self.folds is None:
            return round(self.validation_fraction * pool)
        return len(range(self.fold, pool, self.folds))

    def _check_classes(self, facts: DatasetFacts) -> None:
        if not self.classes:
            return
        known = all(0 <= label < facts.classes for label in self.classes)
        if len(set(self.classes)) < len(self.classes) or len(self.classes) < 2 or not known:
            raise ConfigError(
                f"data.classes={list(self.classes)} must be two labels of {self.name} or more, each once, out of 0 to "
                f"{facts.classes - 1}; [] keeps all"
            )

    @property
    def _kept(self) -> tuple[int, int]:
        """Images of the training part, before validation is cut off, and classes; of a subset about as many."""
        facts = DATASETS[self.name]
        classes = len(self.classes) or facts.classes
        return facts.train * classes // facts.classes, classes

    @property
    def training_images(self) -> int:
        """How many images are trained on; of some of the classes of a data set that is not balanced, about."""
        return self.train_size or (self.pool_size or self._kept[0]) - self.validation_images
