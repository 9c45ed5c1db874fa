"""Common short English words: most tokenizers have each of them, with the space before it, as one token."""

_TEXT = """
able about above across act add after again age air all along also and animal answer any appear area arm art ask
baby back bad ball bank base be bear beat bed been best big bird black blood blue board boat body book born both box
boy bring build burn bus but buy by call came camp can car care carry case cat cause cell chair chief child city
class clean clear climb close cloth cloud coast cold color come cook cool copy corn cost count cover cow crop cross
crowd cry cut dance dark day dead deal dear deep did die dog door down draw dream dress drink drive drop dry duck
each ear early earth east eat edge egg eight else end enemy enough even ever eye face fact fall family far farm fast
fat father fear feed feel feet few field fig fight fill final find fine finger fire first fish fit five flat floor
flow fly food foot force form found four free fresh friend from front fruit full fun game garden gas gave get girl
give glad glass go gold gone good got grand grass gray great green grew ground group grow guess gun hair half hand
happy hard has hat have head hear heart heat heavy held help here high hill his hit hold hole home hope horse hot
hour house how huge human hunt ice idea inch iron island job join joy just keep kept key kill kind king knew know
lady lake land large last late laugh law lay lead learn leave left leg less let level lie life lift light like line
list little live log lone long look lost lot loud love low made mail main major make man many map mark market mass
master match may mean meat meet men metal mile milk mind mine miss money month moon more most mother mouth move
"""

WORDS = tuple(_TEXT.split())
