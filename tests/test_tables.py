import dataclasses
import json

import pyarrow as pa

from schemas.labels import FER_2013
from schemas.tables import FACES, LEDGER, FaceRow, LedgerRow, facemill_metadata, faces_schema, ledger_schema


def features(schema):
    return json.loads(schema.metadata[b"huggingface"])["info"]["features"]


def test_the_row_classes_have_the_columns_of_their_tables_in_order():
    assert [column.name for column in dataclasses.fields(FaceRow)] == FACES.names
    assert [column.name for column in dataclasses.fields(LedgerRow)] == LEDGER.names


def test_the_image_is_a_struct_of_bytes_and_path_in_this_order():
    assert FACES.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert FACES.field("label").type == pa.int64()


def test_every_column_is_listed_for_hugging_face():
    assert list(features(faces_schema(FER_2013, {}))) == FACES.names
    assert list(features(ledger_schema())) == LEDGER.names


def test_features_say_what_they_are():
    listed = features(faces_schema(FER_2013, {}))
    assert listed["image"] == {"_type": "Image"}
    assert listed["label"] == {"names": list(FER_2013.names), "_type": "ClassLabel"}
    assert listed["bbox"] == {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "List"}
    assert listed["landmarks"]["length"] == 5
    assert listed["landmarks"]["feature"]["length"] == 2
    assert listed["crop_aligned"] == {"dtype": "bool", "_type": "Value"}
    assert listed["score"] == {"dtype": "float32", "_type": "Value"}


def test_label_set_and_recipe_travel_with_the_table():
    schema = faces_schema(FER_2013, {"recipe": {"margin": 0.2}})
    assert facemill_metadata(schema) == {
        "label_set": "fer2013",
        "label_names": list(FER_2013.names),
        "recipe": {"margin": 0.2},
    }
    assert facemill_metadata(pa.schema([])) == {}
