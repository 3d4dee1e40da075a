"Finding, downloading and checking the files of a data set"
import hashlib, os, zipfile
import pandas as pd, pytest
from fastai.data.external import fastai_cfg
from fastkd.data.files import *

def write(file, text, encoding='utf-8'):
    file.write_text(text, encoding=encoding)
    return file

@pytest.mark.parametrize('text', ['name,label\nx.png,1\ny.png,2\n', 'name, label\nx.png, 1\ny.png , 2\n',
    'label,name,more\n1,x.png,\n2,y.png,3\n',
    '\ufeffname,label\nx.png,1\ny.png,2\n', 'name,label\r\nx.png,1\r\ny.png,2\r\n',
    '"name","label"\n"x.png","1"\n"y.png","2"\n'])
def test_tables_with_spaces_quotes_and_more_columns(tmp_path, text):
    df = read_table(write(tmp_path/'a.csv', text), ['name','label'])
    assert list(df) == ['name','label'] and df.values.tolist() == [['x.png','1'],['y.png','2']]

def test_labels_stay_strings(tmp_path):
    assert read_table(write(tmp_path/'a.csv', 'name,label\nx,007\n'), ['name','label']).label[0] == '007'

@pytest.mark.parametrize('sep', [';','\t','|'])
def test_another_separator_is_named(tmp_path, sep):
    file = write(tmp_path/'a.csv', f'name{sep}label\nx{sep}1\n')
    with pytest.raises(ValueError) as e: read_table(file, ['name','label'])
    assert f'separated by {sep!r}, not by' in str(e.value) and str(file) in str(e.value)

@pytest.mark.parametrize('text,msg', [
    ('name,age\nx,1\n', "no column 'label'; the first line is 'name,age'"), ('a,b\nx,1\n', "no column 'name' and no column 'label'"),
    ('name,label\nx,\n', 'line 2 is incomplete'), ('name,label\nx,1\nx,1\n', "'x' is listed twice, in line 3"),
    ('name,label\n', 'has no rows'),
    ('', 'not a table'), ('name,label\nx,1\ny,1,2,3\n', 'not a table')], ids=repr)
def test_broken_tables_are_named(tmp_path, text, msg):
    with pytest.raises(ValueError, match=msg) as e: read_table(write(tmp_path/'a.csv', text), ['name','label'])
    assert str(tmp_path/'a.csv') in str(e.value)

def test_a_table_in_another_encoding(tmp_path):
    with pytest.raises(ValueError, match='not a table'):
        read_table(write(tmp_path/'a.csv', 'name,label\nx,1\n', 'utf-16'), ['name','label'])

@pytest.fixture
def web(tmp_path, monkeypatch):
    "A folder that is downloaded from, with fastai's folders beside it"
    monkeypatch.setitem(fastai_cfg().d, 'data', str(tmp_path/'data'))
    monkeypatch.setitem(fastai_cfg().d, 'archive', str(tmp_path/'archive'))
    (tmp_path/'web').mkdir()
    return tmp_path/'web'

def md5(f): return hashlib.md5(f.read_bytes()).hexdigest()

def test_download_unpacks_archives_and_copies_the_rest_once(web, tmp_path):
    with zipfile.ZipFile(web/'a.zip', 'w') as z: z.writestr('sub/x.txt', 'hello')
    write(web/'b.gz', 'as it is')
    files = [((web/o).as_uri(), md5(web/o)) for o in ('a.zip','b.gz')]
    path = fetch('things', files)
    assert path == tmp_path/'data'/'things' and (path/'sub'/'x.txt').read_text() == 'hello' and (path/'b.gz').read_text() == 'as it is'
    for o in web.iterdir(): o.unlink()
    assert fetch('things', files) == path  # no second download

def test_another_checksum_is_an_error_and_leaves_no_folder(web, tmp_path):
    write(web/'b.gz', 'something else')
    with pytest.raises(OSError, match='is not the published file, its MD5 sum is not 0123'):
        fetch('things', [((web/'b.gz').as_uri(), '0123')])
    assert not (tmp_path/'data'/'things').exists()

def test_an_old_archive_with_another_checksum_is_downloaded_again(web, tmp_path):
    write(web/'b.gz', 'right')
    (tmp_path/'archive').mkdir()
    write(tmp_path/'archive'/'b.gz', 'half')
    assert (fetch('things', [((web/'b.gz').as_uri(), md5(web/'b.gz'))])/'b.gz').read_text() == 'right'

def test_no_network_says_what_to_do(web):
    with pytest.raises(OSError, match=r'web/none.zip could not be downloaded .*download it by hand into .*archive'):
        fetch('things', [((web/'none.zip').as_uri(), None)])

def test_a_broken_archive_leaves_no_data_folder(web, tmp_path):
    write(web/'a.zip', 'not a zip')
    with pytest.raises(Exception): fetch('things', [((web/'a.zip').as_uri(), None)])
    assert not (tmp_path/'data'/'things').exists()
