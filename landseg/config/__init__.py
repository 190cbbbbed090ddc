"""What a run or a training is told: YAML files read into frozen, checked values."""

from landseg.config.legend import ClassConfig, LegendConfig, legend_of
from landseg.config.loading import load_config, override, override_by_environment
from landseg.config.model import ArchitectureConfig, ImportConfig, ImportedArchitectureConfig
from landseg.config.pipeline import CatalogQuery, MergeConfig, PipelineConfig, ScenesConfig
from landseg.config.run import MapConfig, PolygonConfig, RunConfig
from landseg.config.training import (
    AugmentationConfig,
    BlocksConfig,
    CardConfig,
    DataConfig,
    DatasetConfig,
    LossConfig,
    OptimisationConfig,
    PairConfig,
    TeacherConfig,
    TrainConfig,
    ValidationConfig,
)

__all__ = [
    "ArchitectureConfig",
    "AugmentationConfig",
    "BlocksConfig",
    "CardConfig",
    "CatalogQuery",
    "ClassConfig",
    "DataConfig",
    "DatasetConfig",
    "ImportConfig",
    "ImportedArchitectureConfig",
    "LegendConfig",
    "LossConfig",
    "MapConfig",
    "MergeConfig",
    "OptimisationConfig",
    "PairConfig",
    "PipelineConfig",
    "PolygonConfig",
    "RunConfig",
    "ScenesConfig",
    "TeacherConfig",
    "TrainConfig",
    "ValidationConfig",
    "legend_of",
    "load_config",
    "override",
    "override_by_environment",
]
