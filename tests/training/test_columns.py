"The training table and its curves compare like with like: training task loss with validation loss"
import matplotlib.pyplot as plt, pytest
from fastai.learner import AvgSmoothLoss, Recorder

from fastkd.losses.soft_targets import SoftTarget
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.columns import SmoothLoss
from fastkd.training.resume import Resume
from interrupted import *

def teacher(): return seeded(net, 16, 12, seed=9).eval()
def distilled(path, **kwargs): return fresh(path, cbs=KnowledgeDistillation(teacher(), **kwargs))

class TaskLosses(Callback):
    "The task loss of every training batch, before distillation adds to it"
    order,run_valid = -1,False
    def before_fit(self): self.values = []
    def after_loss(self): self.values.append(self.learn.loss.detach().clone())

def drawn(learn, **kwargs):
    "What `plot_loss` draws: the steps and values of the training losses, and the label of the axis"
    ax = learn.recorder.plot_loss(skip_start=0, ax=plt.figure().add_subplot(), **kwargs)
    lines = {l.get_label():l for l in ax.lines}
    plt.close('all')
    return lines['train'].get_ydata(),ax.get_ylabel()

def smoothed(values):
    m,res = AvgSmoothLoss(),[]
    for v in values:
        m.accumulate(type('Batch', (), dict(loss=v)))
        res.append(m.value.item())
    return res

@pytest.mark.filterwarnings("ignore:The teacher's")
def test_plot_loss_of_a_distilled_learner_draws_the_smoothed_task_loss(tmp_path):
    learn,task = distilled(tmp_path, weight=.9),TaskLosses()
    learn.fit(2, 1e-2, cbs=task)
    total = list(learn.recorder.losses)
    values,label = drawn(learn)
    np.testing.assert_allclose(values, smoothed(task.values), rtol=1e-5)
    assert label == 'task loss' and not np.allclose(values, total, rtol=1e-2)
    assert learn.recorder.losses == total  # they are only drawn otherwise

@pytest.mark.filterwarnings("ignore:The teacher's")
def test_plot_loss_with_log_scale_and_without_validation(tmp_path):
    learn = distilled(tmp_path)
    learn.fit(2, 1e-2)
    np.testing.assert_array_equal(drawn(learn)[0], drawn(learn, log=True, with_valid=False, show_epochs=True)[0])

@pytest.mark.parametrize('kwargs', [{}, dict(cbs=KnowledgeDistillation(nn.Identity(), SoftTarget(), weight=0))], ids=['never','weight 0'])
def test_plot_loss_of_plain_training_is_that_of_fastai(kwargs, tmp_path):
    learn = fresh(tmp_path, **kwargs)
    learn.fit(1, 1e-2)
    values,label = drawn(learn)
    np.testing.assert_array_equal(values, [float(o) for o in learn.recorder.losses])
    assert label == 'loss'

@pytest.mark.filterwarnings("ignore:The teacher's")
def test_plot_loss_after_lr_find_and_after_a_second_fit(tmp_path):
    learn,task = distilled(tmp_path),TaskLosses()
    learn.fit(1, 1e-2)
    learn.lr_find(num_it=6, show_plot=False)
    assert len(drawn(learn, with_valid=False)[0]) == len(learn.recorder.losses)
    learn.fit(1, 1e-2, cbs=task)
    np.testing.assert_allclose(drawn(learn)[0], smoothed(task.values), rtol=1e-5)

@pytest.mark.filterwarnings("ignore:The teacher's")
def test_plot_loss_after_an_interruption_goes_on(tmp_path):
    whole = distilled(tmp_path)
    whole.fit(3, 1e-2)
    learn = distilled(tmp_path)
    with pytest.raises(KeyboardInterrupt): learn.fit(3, 1e-2, cbs=[Resume('a'), Stop(1)])
    learn = distilled(tmp_path)
    learn.fit(3, 1e-2, cbs=Resume('a'))
    np.testing.assert_array_equal(drawn(learn)[0], drawn(whole)[0])
    assert learn.knowledge_distillation.history.equals(whole.knowledge_distillation.history)  # one fit, not two

def test_history_saved_before_it_had_task_losses_loads(tmp_path):
    kd = KnowledgeDistillation(teacher())
    sd = {k:v for k,v in kd.state_dict().items() if k not in ('task_losses','smooth')}
    kd.load_state_dict(dict(sd, rows=[dict(fit=0, epoch=0, task_loss=1.)], fits=1))
    assert kd.history.task_loss.tolist() == [1.] and kd.records.task_losses == []

@pytest.mark.filterwarnings("ignore:The teacher's")
def test_columns_say_that_they_are_of_the_training_batches(tmp_path):
    learn = distilled(tmp_path)
    learn.fit(1, 1e-2)
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[0]))
    h = learn.knowledge_distillation.history
    eq(list(row), ['train_loss','valid_loss','accuracy','train_task','train_soft_target'])
    eq([row['train_task'], row['train_soft_target']], [h.task_loss[0], h.soft_target[0]])

@pytest.mark.filterwarnings("ignore:The teacher's")
def test_a_loss_whose_name_ends_in_loss_keeps_it(tmp_path):
    def my_loss(pred, teacher_pred): return (pred-teacher_pred).pow(2).mean()
    learn = distilled(tmp_path, loss=my_loss)
    with learn.no_logging(): learn.fit(1, 1e-2)
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[0]))
    eq(row['train_my_loss'], learn.knowledge_distillation.history.my_loss[0])

def test_smooth_loss_is_that_of_fastai_and_nan_before_the_first_value():
    values,s = torch.randn(20),SmoothLoss()
    assert s.add(None).isnan()
    np.testing.assert_allclose([s.add(v).item() for v in values], smoothed(values), rtol=1e-6)
