"What users of fastkd import: `from fastkd.all import *`, after fastai's own"
from fastkd.data.cassava import cassava_dls
from fastkd.data.digits import PartialCategoryBlock, digits_dls
from fastkd.data.gtsrb import gtsrb_dls, gtsrb_names, gtsrb_test_dl
from fastkd.data.mhist import mhist_dls
from fastkd.data.mnist import mnist_dls
from fastkd.data.sample import sample
from fastkd.evaluation.compare import compare
from fastkd.evaluation.image_plots import plot_attention, plot_disagreements, plot_soft_targets
from fastkd.evaluation.masks import agreement, class_mask
from fastkd.evaluation.plots import plot_losses, plot_pareto, plot_temperature
from fastkd.evaluation.prediction_plots import plot_calibration, plot_confusion_change
from fastkd.evaluation.report import report
from fastkd.evaluation.statistics import ece, nll, paired_interval
from fastkd.evaluation.style import style
from fastkd.evaluation.tta import TTAEvaluator, test_time_aug
from fastkd.losses.activations import OFD, ActivationBoundaries, activation_boundaries, ofd
from fastkd.losses.batch import DIST, MultiLevel, dist, multi_level
from fastkd.losses.contrastive import CRD, crd
from fastkd.losses.features import Attention, FitNet, Similarity, attention, fitnet, similarity
from fastkd.losses.label_aware import (
    DecoupledKD, NormalizedKD, TeacherFree, WeightedSoftLabel, decoupled_kd, normalized_kd, teacher_free,
    weighted_soft_label)
from fastkd.losses.maps import FSP, NST, ChannelWise, FactorTransfer, channel_wise, factor_transfer, fsp, nst
from fastkd.losses.regression import Huber, TeacherBounded, huber, teacher_bounded
from fastkd.losses.relations import PKT, RKD, CorrelationCongruence, correlation_congruence, pkt, rkd
from fastkd.losses.review import ReviewKD, review_kd
from fastkd.losses.soft_targets import BinarySoftTarget, Logits, SoftTarget, binary_soft_target, logits, soft_target
from fastkd.losses.variational import VID, vid
from fastkd.models.layers import layer_names
from fastkd.models.pairs import pair_layers
from fastkd.models.split import body_head, split_at
from fastkd.schemes.generations import born_again, distill_chain
from fastkd.schemes.mean_teacher import MeanTeacher
from fastkd.schemes.mutual import MutualLearning
from fastkd.schemes.trial import trial
from fastkd.teachers.teacher import Teacher
from fastkd.training.calibrate import calibrate
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.cycles import clr_schedule
from fastkd.training.head import FasterHead
from fastkd.training.resume import Resume
from fastkd.training.schedules import LearnableT, warm_up
from fastkd.training.short_epochs import ShortEpochs

__all__ = [
    'ActivationBoundaries', 'Attention', 'BinarySoftTarget', 'CRD', 'ChannelWise', 'CorrelationCongruence', 'DIST', 'DecoupledKD', 'FSP',
    'FactorTransfer', 'FasterHead', 'FitNet', 'Huber', 'KnowledgeDistillation', 'LearnableT', 'Logits', 'MeanTeacher', 'MultiLevel',
    'MutualLearning', 'NST', 'NormalizedKD', 'OFD', 'PKT', 'PartialCategoryBlock', 'RKD', 'Resume', 'ReviewKD', 'ShortEpochs', 'Similarity',
    'SoftTarget', 'TTAEvaluator', 'Teacher', 'TeacherBounded', 'TeacherFree', 'VID', 'WeightedSoftLabel', 'activation_boundaries',
    'agreement', 'attention', 'binary_soft_target', 'body_head', 'born_again', 'calibrate', 'cassava_dls', 'channel_wise', 'class_mask',
    'clr_schedule', 'compare', 'correlation_congruence', 'crd', 'decoupled_kd', 'digits_dls', 'dist', 'distill_chain', 'ece',
    'factor_transfer', 'fitnet', 'fsp', 'gtsrb_dls', 'gtsrb_names', 'gtsrb_test_dl', 'huber', 'layer_names', 'logits', 'mhist_dls',
    'mnist_dls', 'multi_level', 'nll', 'normalized_kd', 'nst', 'ofd', 'pair_layers', 'paired_interval', 'pkt', 'plot_attention',
    'plot_calibration', 'plot_confusion_change', 'plot_disagreements', 'plot_losses', 'plot_pareto', 'plot_soft_targets',
    'plot_temperature', 'report', 'review_kd', 'rkd', 'sample', 'similarity', 'soft_target', 'split_at', 'style', 'teacher_bounded',
    'teacher_free', 'test_time_aug', 'trial', 'vid', 'warm_up', 'weighted_soft_label']
