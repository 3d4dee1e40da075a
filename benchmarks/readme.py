"""The comparison table and the two pictures of the README: python benchmarks/readme.py writes the pictures to nbs/images and prints the table."""
import warnings
from pathlib import Path

warnings.filterwarnings('ignore')
import matplotlib
matplotlib.use('agg')
from fastai.vision.all import *
from fastkd.all import *
from fastkd.cli.demo import fit_teacher, make_student

images = Path(__file__).parents[1]/'nbs/images'

def fitted(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(5, 2e-2)
    return learn

def student(seed, teacher=None):
    "A student of the demo with 100 labels: alone, or with the teacher's predictions for all 1293 images"
    set_seed(seed)
    learn = make_student(alone=teacher is None)
    if teacher: learn.add_cb(KnowledgeDistillation(teacher, weight=.9))
    return fitted(learn)

def markdown(df):
    "The table as Markdown"
    head = ['', *df.columns]
    rows = [head, ['---']*len(head), *([k, *row] for k,row in zip(df.index, df.to_numpy().tolist()))]
    return '\n'.join(f"| {' | '.join(map(str, o))} |" for o in rows)

def main():
    torch.set_num_threads(1)
    images.mkdir(exist_ok=True)
    teacher = fit_teacher(5)
    alone,distilled = [student(i) for i in range(5)],[student(i, teacher) for i in range(5)]
    with teacher.no_bar(): df = compare({'teacher': teacher, 'student alone': alone, 'distilled': distilled})
    print(markdown(df.shown()), df._note(), sep='\n\n')
    plot_pareto(df, x='flops').figure.savefig(images/'pareto.png', dpi=110, bbox_inches='tight')
    plot_soft_targets(teacher, n=3)[0].figure.savefig(images/'soft_targets.png', dpi=110, bbox_inches='tight')

if __name__ == '__main__': main()
