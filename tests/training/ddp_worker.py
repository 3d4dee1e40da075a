"One process of `test_ddp.py`: trains a distilled student and saves what it ended with; arguments: output folder, number of processes"
import os, sys
from pathlib import Path
os.environ['ACCELERATE_USE_CPU'] = 'true'
sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers
import fastai.distributed as fd
from fastai.distributed import *

from fastkd.losses.features import Attention, FitNet
from fastkd.losses.soft_targets import SoftTarget
from fastkd.training.callback import KnowledgeDistillation
from helpers import *

class Items(Callback):
    "A sum for every training batch that this process saw"
    order,run_valid = .6,False
    def before_fit(self): self.sums = []
    def after_loss(self): self.sums.append(self.xb[0].sum().item())

def cpu_broadcast(self, t, rank):
    t = torch.LongTensor(t)
    torch.distributed.broadcast(t, rank)
    return t.tolist()

def normalised(mean, std): return image_dls(batch_tfms=[Normalize.from_stats([mean]*3, [std]*3)])

def main(out, seed=0):
    fd.DistributedDL._broadcast = cpu_broadcast  # fastai's is for CUDA
    rank,many = rank_distrib(),num_distrib() > 1
    teacher = Learner(normalised(.5, .25), seeded(cnn, 8, 16, seed=3))
    kd = KnowledgeDistillation(teacher, [SoftTarget(), Attention(layers=['0','1']), FitNet(layers='1')])
    learn = student(normalised(.4, .2), cbs=[kd, items := Items()])
    set_seed(seed+rank)  # adapters are born different
    if many:
        with learn.distrib_ctx(sync_bn=False, cpu=True): learn.fit(2, 1e-2)
    else: learn.fit(2, 1e-2)
    hooks = n_hooks(learn.model) + n_hooks(teacher.model)
    torch.save(dict(student=[p.data for p in learn.model.parameters()], adapters=[p.data for p in kd.features.params], sums=items.sums,
                    history=kd.history.to_dict('list'), map=kd.teachers[0].in_map, hooks=hooks, kind=type(learn.model).__name__), f'{out}/{rank}.pt')
    if many:
        torch.distributed.barrier()  # a process whose peer has left already can abort
        torch.distributed.destroy_process_group()

if __name__ == '__main__': main(sys.argv[1])
