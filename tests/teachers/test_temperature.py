"The temperature of a teacher: against an independent search, its limits, and what doesn't count"
import numpy as np, pytest, torch, torch.nn.functional as F
from fastkd.teachers.calibrate import fit_temperature

def sampled(n, c, scale=1., seed=0):
    "Logits, and labels drawn from their probabilities"
    g = torch.Generator().manual_seed(seed)
    z = 2*torch.randn(n, c, generator=g)
    return scale*z,torch.multinomial(z.softmax(1), 1, generator=g)[:,0]

@pytest.mark.parametrize('n,c,scale', [(64,3,2.), (300,10,1.), (300,10,4.), (1000,2,.8)])
def test_no_other_temperature_fits_better(n, c, scale):
    z,y = sampled(n, c, scale)
    got = fit_temperature(z, y)
    grid = np.exp(np.linspace(np.log(.5), np.log(10), 4000))
    losses = [F.cross_entropy(z.double()/t, y).item() for t in grid]
    assert got == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    assert F.cross_entropy(z.double()/got, y).item() <= min(losses) + 1e-9

def test_it_recovers_the_factor():
    for scale in .6,1.,3.: assert fit_temperature(*sampled(30000, 6, scale)) == pytest.approx(scale, rel=.03)

def test_limits():
    z,y = sampled(500, 4)
    right = F.one_hot(y, 4).float()
    assert fit_temperature(right, y) == pytest.approx(.5, rel=1e-3)  # always right: as sharp as it may be
    assert fit_temperature(-right, y) == pytest.approx(10, rel=1e-3)  # always wrong: as soft

def test_items_without_a_label_or_with_infinite_logits_do_not_count():
    z,y = sampled(400, 5, 2.)
    z2,y2 = torch.cat([z, z, z[:3]/0]),torch.cat([y, -torch.ones_like(y), y[:3]])
    assert fit_temperature(z2, y2) == fit_temperature(z, y)

def test_few_labels_say_nothing():
    z,y = sampled(50, 5, 3.)
    assert fit_temperature(z, y) != 1
    assert fit_temperature(z[:49], y[:49]) == 1
    assert fit_temperature(z, -torch.ones_like(y)) == 1
