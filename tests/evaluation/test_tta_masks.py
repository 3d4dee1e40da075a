"Test-time augmentation of predictions with positions: flips are undone, what cannot be undone is said"
import warnings

import pytest
from fastai.vision.all import *
from fastcore.test import test_close as close, test_eq as eq
from fastkd.evaluation.passes import dihedral_part, turned_back
from fastkd.evaluation.tta import test_time_aug, TTAEvaluator
from fastkd.models.reading import DistillationWarning

n = 12
class Bright(nn.Module):
    "Two logits for each pixel: is it bright? Whatever happens to the image happens to the prediction"
    def __init__(self, scale=1):
        super().__init__()
        self.w,self.scale = nn.Parameter(tensor(9.)),scale
    def forward(self, x):
        z = self.w*(x[:,:1]-.5)
        return torch.cat([-z, z], 1)[...,::self.scale,::self.scale]

def masks_learner(batch_tfms=None, item_tfms=None, h=8, w=8, model=None, loss_func=None):
    "Random bright rectangles, and masks of them"
    rng = np.random.default_rng(0)
    masks = (rng.random((n,h//2,w//2)) < .3).repeat(2, 1).repeat(2, 2).astype(np.uint8)
    block = DataBlock((ImageBlock, MaskBlock(['dark','bright'])), splitter=IndexSplitter(range(n)),
                      batch_tfms=batch_tfms, item_tfms=item_tfms,
                      getters=[lambda m: PILImage.create(np.stack([m*255]*3, -1)), lambda m: PILMask.create(m)])
    dls = block.dataloaders([*masks, *masks], bs=5, num_workers=0, device='cpu', shuffle=False)
    learn = Learner(dls, model or Bright(), loss_func=loss_func or CrossEntropyLossFlat(axis=1), metrics=[])
    learn.remove_cb(ProgressCallback)
    return learn

def no_loss(pred, targ): return pred.mean()
def pixel_accuracy(preds, targs): return (preds.argmax(1) == targs).float().mean()

@pytest.mark.parametrize('tfms,h,w', [
    ([Flip(p=1.)], 8, 8), ([Flip()], 8, 8), ([Flip()], 8, 12), ([Dihedral(p=1., draw=2)], 8, 12), ([Dihedral(p=1.)], 8, 8),
    *[([Dihedral(p=1., draw=k)], 8, 8) for k in range(8)], ([Flip(p=1., batch=True)], 8, 8),
    ([Flip(), Dihedral(p=1.)], 8, 8), (aug_transforms(flip_vert=True, max_rotate=0, max_zoom=1., max_warp=0, max_lighting=0), 8, 8)])
def test_flips_and_quarter_turns_are_undone(tfms, h, w):
    "Every augmented pass gives the plain prediction, pixel by pixel"
    learn = masks_learner(tfms, h=h, w=w)
    ev = TTAEvaluator(learn, seed=0)
    plain,targs = ev.preds(0)
    eq(pixel_accuracy(plain, targs), 1.)
    for o in ev.passes.get(3)[1]: close(o.preds, plain, 1e-5)
    eq(ev.curve([0,2], pixel_accuracy)['pixel_accuracy'].tolist(), [1.,1.])
    eq(test_time_aug(learn, learn.dls.valid, None, pixel_accuracy, [2], seed=0).score.tolist(), [1.])

def test_fastai_averages_masks_of_different_positions():
    "What happens without turning them back"
    learn = masks_learner([Flip(p=1.)])
    preds,targs = learn.tta(n=2)
    assert pixel_accuracy(preds, targs) < .9

def test_predictions_at_another_scale_are_turned_back():
    learn = masks_learner([Dihedral(p=1.)], model=Bright(2), loss_func=no_loss)
    plain,aug = TTAEvaluator(learn, seed=0).passes.get(2)
    eq(tuple(plain.preds.shape), (n,2,4,4))
    for o in aug: close(o.preds, plain.preds, 1e-5)

@pytest.mark.parametrize('batch_tfms,item_tfms,what,h,w', [
    ([Rotate(30, p=1.)], None, 'rotation or zoom', 8, 8), ([Zoom(min_zoom=1.5, max_zoom=1.6, p=1.)], None, 'rotation or zoom', 8, 8),
    ([Warp(p=1.)], None, 'Warp', 8, 8), (None, [FlipItem(1.)], 'FlipItem', 8, 8), (None, [RandomResizedCrop(8)], 'RandomResizedCrop', 8, 8),
    ([Dihedral(p=1., draw=3)], None, 'quarter turns of images that are not square', 8, 12)])
def test_what_cannot_be_undone_is_said_once_with_a_remedy(batch_tfms, item_tfms, what, h, w):
    ev = TTAEvaluator(masks_learner(batch_tfms, item_tfms, h, w), seed=0)
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        ev.preds(2)
        ev.preds(3)
    ws = [str(o.message) for o in ws if o.category is DistillationWarning]
    eq(len(ws), 1)
    assert f'({what})' in ws[0] and 'aug_transforms(max_rotate=0, max_zoom=1, max_warp=0)' in ws[0]

def test_points_are_not_turned_back_but_it_is_said():
    items = [(np.full((8,8,3), 30*i, np.uint8), tensor([[i, 2.]])) for i in range(6)]
    block = DataBlock((ImageBlock, PointBlock), getters=[ItemGetter(0), ItemGetter(1)], splitter=IndexSplitter(range(3)),
                      batch_tfms=[Flip(p=1.)])
    dls = block.dataloaders(items, bs=3, num_workers=0, device='cpu')
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(192,2)), loss_func=MSELossFlat())
    learn.remove_cb(ProgressCallback)
    with pytest.warns(DistillationWarning, match='flips of points or boxes'): TTAEvaluator(learn, seed=0).preds(1)

def test_a_classifier_has_no_positions():
    learn = masks_learner([Rotate(30, p=1.)], model=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3,2)), loss_func=no_loss)
    with warnings.catch_warnings():
        warnings.simplefilter('error', DistillationWarning)
        TTAEvaluator(learn, seed=0).preds(1)

@pytest.mark.parametrize('k', range(8))
def test_turned_back_undoes_fastais_dihedral(k):
    x = torch.arange(9.).reshape(1,1,3,3)
    t = Dihedral(p=1., draw=k)
    y = t(TensorImage(x), split_idx=0)
    d,exact = dihedral_part(t.mat[0].as_subclass(Tensor))
    assert exact and (k==0 or not torch.equal(y.as_subclass(Tensor), x))
    close(turned_back(y.as_subclass(Tensor), d), x, 1e-4)
