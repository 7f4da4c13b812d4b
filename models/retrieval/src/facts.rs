//! What the words of a product say about diets and age: a table of words, and what stands against them.
//!
//! A catalogue from outside states no diets. Its names, categories and lists of ingredients are compared with the table below, phrase
//! by phrase, the longest phrase first: `almond milk` speaks of nuts and not of milk, `hot dog bun` of wheat and not of meat. The
//! table leans to caution: where most things of a name hold an ingredient, the name counts as holding it. A name can deny:
//! `vegan`, `gluten free`, `non alcoholic`. What is not listed is not known, which is not the same as free of it.

use std::{collections::HashMap, sync::LazyLock};

use endcap_schemas::{Diet, DietSet};

use crate::words::words;

/// What the words of a product say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// Diets that it is known to violate.
    pub violates: DietSet,
    /// Whether it may be sold to adults only.
    pub age_restricted: bool,
}

/// A set of kinds of ingredient.
type Kinds = u16;

const MEAT: Kinds = 1;
const PORK: Kinds = 1 << 1;
const FISH: Kinds = 1 << 2;
const DAIRY: Kinds = 1 << 3;
const EGG: Kinds = 1 << 4;
const BEE: Kinds = 1 << 5;
const GLUTEN: Kinds = 1 << 6;
const NUT: Kinds = 1 << 7;
const ALCOHOL: Kinds = 1 << 8;
const ADULT: Kinds = 1 << 9;
/// Everything that comes from animals.
const ANIMAL: Kinds = MEAT | PORK | FISH | DAIRY | EGG | BEE;

/// Kinds with the words and phrases that speak of them, singular and folded as [`words`] gives them, separated by commas.
/// A kind of 0 takes the words out of a phrase: nothing in it counts.
const PHRASES: &[(Kinds, &str)] = &[
    (
        MEAT,
        "meat,beef,chicken,turkey,duck,goose,lamb,mutton,veal,venison,bison,rabbit,poultry,jerky,meatball,meatloaf,steak,brisket,\
         hamburger,cheeseburger,burger,liver,pate,foie gra,tallow,suet,bone broth,collagen,oxtail,tripe,offal,giblet,gizzard,pastrami,\
         corned beef,spare rib,rib eye,ribeye,sirloin,tenderloin,turkey bacon,beef bacon,turkey ham,turkey sausage,chicken sausage,\
         beef sausage,turkey pepperoni,beef salami,turkey salami,beef hot dog,beef frank,turkey frank,beef gelatin,animal rennet,rennet,\
         cochineal,carmine,hen,cornish hen,quail,pheasant,elk,kebab,gyro,shawarma,bolognese,meat sauce,beef bouillon,chicken broth,\
         chicken bouillon,beef stock,chicken stock,beef broth",
    ),
    (
        MEAT | PORK,
        "pork,ham,bacon,sausage,salami,pepperoni,prosciutto,chorizo,bologna,frankfurter,frank,bratwurst,wurst,kielbasa,mortadella,\
         pancetta,guanciale,speck,soppressata,capicola,hot dog,wiener,weiner,lunchmeat,luncheon meat,spam,lard,gelatin,gelatine,\
         pork rind,chicharron,carnita,andouille,liverwurst,braunschweiger,salt pork,marshmallow,jello,gummy bear",
    ),
    (
        FISH,
        "fish,salmon,tuna,cod,haddock,trout,sardine,anchovy,mackerel,herring,tilapia,catfish,halibut,pollock,hake,shrimp,prawn,crab,\
         lobster,clam,mussel,oyster,scallop,squid,calamari,octopus,seafood,caviar,roe,eel,surimi,crawfish,crayfish,shellfish,finfish,\
         kipper,sea bass,snapper,swordfish,mahi,flounder,sushi,fish sauce,fish oil,caesar dressing,isinglass,bonito,dashi",
    ),
    (FISH | GLUTEN, "worcestershire,fish stick,fish finger,tempura,crab cake,fish cake"),
    (
        DAIRY,
        "milk,cheese,butter,cream,yogurt,whey,casein,caseinate,lactose,ghee,kefir,curd,buttermilk,creamer,cheddar,mozzarella,parmesan,\
         parmigiano,brie,gouda,feta,ricotta,mascarpone,gruyere,provolone,camembert,gorgonzola,halloumi,paneer,quark,skyr,ice cream,\
         gelato,sherbet,latte,cappuccino,milkshake,alfredo,ranch,dulce leche,pudding,dairy,half half,queso,colby,monterey jack,\
         pepper jack,edam,emmental,swiss cheese,cottage cheese,sour cream,frozen yogurt,fudge,toffee,milk chocolate,white chocolate,\
         chocolate bar,tzatziki,raita,lassi,frosting,caramel sauce,bechamel,fondue",
    ),
    (DAIRY | EGG, "eggnog,egg nog,custard,creme brulee,hollandaise"),
    (
        DAIRY | GLUTEN,
        "pizza,mac cheese,macaroni cheese,lasagna,lasagne,quesadilla,cream of wheat,cream wheat,calzone,grilled cheese,cheese cracker,\
         cheese stick breaded,croissant,milk roll",
    ),
    (
        DAIRY | EGG | GLUTEN,
        "cheesecake,quiche,cake,cupcake,brioche,pancake,waffle,french toast,muffin,donut,brownie,danish,eclair,cream puff,tiramisu,scone,\
         pound cake,coffee cake,madeleine,profiterole",
    ),
    (DAIRY | NUT, "nutella,gianduja,praline,hazelnut spread,peanut butter cup"),
    (EGG, "egg,mayonnaise,mayo,meringue,omelet,omelette,frittata,albumen,albumin,aioli,tartar sauce,egg white,egg yolk"),
    (EGG | GLUTEN, "egg noodle,egg roll,egg pasta,challah"),
    (BEE, "honey,beeswax,royal jelly,propoli,bee pollen,shellac,honeycomb"),
    (
        GLUTEN,
        "wheat,barley,rye,malt,malted,spelt,semolina,durum,farro,bulgur,couscous,seitan,triticale,kamut,bread,breadstick,bread stick,\
         bread crumb,breadcrumb,breaded,bun,bread roll,dinner roll,bagel,baguette,ciabatta,focaccia,cookie,biscuit,cracker,pretzel,pasta,\
         spaghetti,macaroni,noodle,ravioli,penne,fettuccine,linguine,tortellini,gnocchi,ramen,udon,orzo,rigatoni,farfalle,fusilli,pie,pastry,\
         tortilla,flour tortilla,flour,crouton,toast,melba,pita,naan,nan,matzo,panko,dumpling,wonton,gyoza,potsticker,samosa,empanada,\
         burrito,enchilada,sandwich,stuffing,gravy,breakfast cereal,cereal bar,cereal,muesli,soy sauce,shoyu,teriyaki,hot dog bun,hot dog roll,\
         hamburger bun,burger bun,hamburger roll,ice cream cone,sugar cone,graham,wafer,strudel,baklava,tart,cobbler,crumble,crepe,\
         filo,phyllo,puff pastry,pie crust,pizza crust,pizza dough,dough,cookie dough,biscuit mix,cake mix,pancake mix,malt vinegar,\
         goldfish cracker,oyster cracker,cream cracker,animal cracker,peanut free cracker,granola bar,licorice,stout bread,orzo",
    ),
    (
        NUT,
        "nut,almond,cashew,walnut,pecan,pistachio,hazelnut,macadamia,peanut,filbert,marzipan,frangipane,nougat,trail mix,pine nut,\
         brazil nut,almond milk,almond butter,almond cream,almond flour,almond yogurt,almond cheese,cashew milk,cashew butter,cashew cheese,\
         cashew cream,hazelnut milk,walnut milk,macadamia milk,peanut butter,nut butter,nut milk,almondmilk,cashewmilk",
    ),
    (GLUTEN | ALCOHOL | ADULT, "beer,ale,lager,stout,pilsner,malt liquor,ipa"),
    (
        ALCOHOL | ADULT,
        "wine,liquor,vodka,rum,whiskey,whisky,bourbon,gin,tequila,brandy,cognac,champagne,prosecco,vermouth,schnapp,liqueur,sake,mezcal,\
         scotch,sangria,hard seltzer,hard cider,merlot,chardonnay,cabernet,pinot,sauvignon,zinfandel,riesling,malbec,chianti,spirit,cordial,\
         alcoholic beverage,wine cooler,armagnac,grappa,absinthe",
    ),
    (
        ALCOHOL,
        "alcohol,cooking wine,wine sauce,wine jelly,beer batter,beer bratwurst,rum raisin,rum cake,rum ball,rum extract,bourbon sauce,\
         bourbon bbq,bourbon glaze,vodka sauce,brandy butter,marsala,sherry,mirin,wine cheese,beer cheese,beer bread,rum flavor,wine pate",
    ),
    (ADULT, "tobacco,cigarette,cigar,snuff,vape,smoking,firework,prophylactic,condom,contraceptive,lottery,pipe tobacco,cbd"),
    (
        0,
        "cereal their product,cereal potato,cereal grain,cereal flour,dairy substitute,milk substitute,cheese substitute,butter substitute,\
         cream substitute,plant milk,plant based milk,legume butter,plant butter,\
         coconut milk,coconut cream,coconut butter,coconut yogurt,soy milk,soymilk,oat milk,oatmilk,rice milk,hemp milk,pea milk,flax milk,\
         soy yogurt,soy cheese,soy cream,soy creamer,oat cream,oat yogurt,quinoa milk,cocoa butter,cacao butter,shea butter,apple butter,\
         pumpkin butter,fruit butter,body butter,sunflower butter,sunflower seed butter,seed butter,cookie butter,soy butter,butter bean,\
         butter lettuce,butter squash,vegetable butter,cream tartar,cream of tartar,cream soda,cream of coconut,cream coconut,\
         shaving cream,hand cream,face cream,skin cream,body cream,eye cream,milk thistle,milk free,lactose free,\
         egg replacer,egg substitute,easter egg,chocolate egg,egg dye,honey dew,honeydew,honey crisp,honey mango,honey mushroom,\
         water chestnut,soy nut,soynut,corn nut,grape nut,tiger nut,donut peach,coconut,\
         beef tomato,beefsteak tomato,oyster mushroom,crab apple,swedish fish,goose berry,\
         rice noodle,glass noodle,bean noodle,bean thread noodle,shirataki noodle,kelp noodle,mung bean noodle,zucchini noodle,rice pasta,corn pasta,\
         lentil pasta,chickpea pasta,quinoa pasta,black bean pasta,rice cracker,rice cake,rice flour,corn flour,coconut flour,tapioca flour,\
         chickpea flour,potato flour,cassava flour,soy flour,buckwheat flour,quinoa flour,sorghum flour,teff flour,\
         corn tortilla,corn tortilla chip,tortilla chip,rice paper,pasta sauce,pizza sauce,spaghetti sauce,spaghetti squash,pie filling,\
         pumpkin pie spice,apple pie spice,pie pumpkin,wheat grass,wheatgrass,rice cereal,bread seasoning,\
         wine vinegar,cider vinegar,rice wine vinegar,red wine vinegar,white wine vinegar,champagne vinegar,sherry vinegar,wine gum,\
         root beer,ginger beer,ginger ale,birch beer,wine glass,beer glass,wine grape,butter beer,\
         vegetable broth,vegetable rennet,microbial rennet,vegetarian rennet,non animal rennet,vegetable gelatin,agar gelatin,\
         vegan marshmallow,rum runner mix,margarita mix,burger seasoning,burger sauce,steak sauce,steak seasoning,steak fry,steak cut fry,\
         chicken seasoning,meat tenderizer,fish seasoning,seafood seasoning,crab seasoning,cat,dog food,cat food,dog treat,cat treat,bird food,\
         fish food,dog,pet food,milk bone,malt extract free,cake pan,muffin pan,bread pan,pie pan,pizza pan,egg beater,sandwich bag,\
         cake decoration,butter dish,butter knife,steak knife,cheese grater,cheese board,pizza cutter,coffee creamer non dairy",
    ),
];

/// Names that deny kinds wherever else in name or category they seem to stand.
const DENIALS: &[(Kinds, &str)] = &[
    (ANIMAL, "vegan,plant based"),
    (MEAT | PORK | FISH, "vegetarian,meatless,veggie,meat free,meat alternative,meat substitute,meat analogue"),
    (GLUTEN, "gluten free,wheat free,flourless"),
    (DAIRY, "dairy free,non dairy,milk free,nondairy"),
    (EGG, "egg free,eggless"),
    (NUT, "nut free,peanut free,tree nut free"),
    (ALCOHOL | ADULT, "alcohol free,non alcoholic,nonalcoholic"),
    (PORK, "halal,pork free"),
];

/// Words of an ingredient list after which only traces are named.
const TRACES: &[&str] = &["may contain", "trace", "facility", "shared equipment", "same equipment"];

/// Phrases by their first word, longest first.
struct Table(HashMap<&'static str, Vec<(Vec<&'static str>, Kinds)>>);

impl Table {
    fn new(lists: &[(Kinds, &'static str)]) -> Self {
        let mut table: HashMap<_, Vec<_>> = HashMap::new();
        for (kinds, list) in lists {
            for phrase in list.split(',') {
                let phrase: Vec<&'static str> = phrase.split_whitespace().collect();
                table.entry(phrase[0]).or_default().push((phrase, *kinds));
            }
        }
        for phrases in table.values_mut() {
            phrases.sort_by_key(|(phrase, _)| std::cmp::Reverse(phrase.len()));
        }
        Self(table)
    }

    /// The longest phrase that begins `words`, as its length and kinds.
    fn starting(&self, words: &[String]) -> Option<(usize, Kinds)> {
        let phrases = self.0.get(words.first()?.as_str())?;
        let starts = |phrase: &[&str]| phrase.len() <= words.len() && phrase.iter().zip(words).all(|(a, b)| a == b);
        phrases.iter().find(|(phrase, _)| starts(phrase)).map(|(phrase, kinds)| (phrase.len(), *kinds))
    }
}

static KINDS: LazyLock<Table> = LazyLock::new(|| Table::new(PHRASES));
static DENIED: LazyLock<Table> = LazyLock::new(|| Table::new(DENIALS));

/// What a product's name, the names of its category (`path`, its last two parts count) and its ingredients say.
///
/// ```
/// # use endcap_retrieval::facts_of;
/// # use endcap_schemas::Diet;
/// assert!(facts_of("Cheddar", &[], "").violates.contains(Diet::Vegan));
/// assert!(!facts_of("Vegan cheddar", &[], "").violates.contains(Diet::Vegan));
/// ```
pub fn facts_of(name: &str, path: &[String], ingredients: &str) -> Facts {
    let name = words(name);
    let category: Vec<Vec<String>> = path.iter().rev().take(2).map(|part| words(part)).collect();
    let mut said = kinds_in(&name);
    let mut denied = denied_in(&name);
    for part in &category {
        said |= kinds_in(part);
        denied |= denied_in(part);
    }
    let mut violates = diets_of(said & !denied);
    let mut age_restricted = said & !denied & ADULT != 0 && sells_to_adults(&name, &category);
    if !ingredients.is_empty() {
        let (held, traces) = split_traces(ingredients);
        // Alcohol among the ingredients of a cake makes it no drink.
        violates = DietSet::from_bits(violates.bits() | diets_of(kinds_in(&words(held))).bits());
        let allergies: DietSet = [Diet::GlutenFree, Diet::DairyFree, Diet::NutFree].into_iter().collect();
        violates = DietSet::from_bits(violates.bits() | diets_of(kinds_in(&words(traces))).bits() & allergies.bits());
    }
    age_restricted &= denied & ADULT == 0;
    Facts { violates, age_restricted }
}

/// A restricted word decides when it names the thing: at the end of the name, or in the category. `Bourbon vanilla` is no bourbon.
fn sells_to_adults(name: &[String], category: &[Vec<String>]) -> bool {
    let last = name.len().saturating_sub(2);
    kinds_in(&name[last..]) & ADULT != 0 || category.iter().any(|part| kinds_in(part) & ADULT != 0)
}

/// Kinds that `words` speak of; `x free`, `non x` and `no x` speak of nothing.
fn kinds_in(words: &[String]) -> Kinds {
    let mut kinds = 0;
    let mut at = 0;
    while at < words.len() {
        let Some((length, found)) = KINDS.starting(&words[at..]) else {
            at += 1;
            continue;
        };
        let free = words.get(at + length).is_some_and(|next| next == "free");
        let none = at > 0 && matches!(words[at - 1].as_str(), "no" | "non" | "without" | "not");
        if !free && !none {
            kinds |= found;
        }
        at += length;
    }
    kinds
}

fn denied_in(words: &[String]) -> Kinds {
    (0..words.len()).filter_map(|at| DENIED.starting(&words[at..])).fold(0, |denied, (_, kinds)| denied | kinds)
}

fn diets_of(kinds: Kinds) -> DietSet {
    const VIOLATED: &[(Kinds, &[Diet])] = &[
        (MEAT | PORK | FISH, &[Diet::Vegetarian, Diet::Vegan]),
        (DAIRY | EGG | BEE, &[Diet::Vegan]),
        (DAIRY, &[Diet::DairyFree]),
        (GLUTEN, &[Diet::GlutenFree]),
        (NUT, &[Diet::NutFree]),
        (PORK | ALCOHOL, &[Diet::Halal]),
    ];
    VIOLATED.iter().filter(|(of, _)| kinds & of != 0).flat_map(|(_, diets)| diets.iter().copied()).collect()
}

/// An ingredient list cut where it begins to speak of traces.
fn split_traces(ingredients: &str) -> (&str, &str) {
    let lower = ingredients.to_ascii_lowercase();
    let cut = TRACES.iter().filter_map(|marker| lower.find(marker)).min().unwrap_or(ingredients.len());
    ingredients.split_at(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, path: &[&str], ingredients: &str, violated: &str) {
        let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
        let found = facts_of(name, &path, ingredients).violates.words();
        assert_eq!(found, violated, "{name} | {path:?} | {ingredients}");
    }

    #[test]
    fn names_speak_of_diets() {
        check("Extra sharp cheddar", &[], "", "vegan and dairy free");
        check("Whole Milk", &[], "", "vegan and dairy free");
        check("Unsweetened almond milk", &[], "", "nut free");
        check("Coconut milk", &[], "", "");
        check("Oat-milk chocolate free from dairy", &[], "", "vegan and dairy free");
        check("Peanut butter", &[], "", "nut free");
        check("Peanut-free granola", &[], "", "");
        check("Butter beans", &[], "", "");
        check("Hot dog buns", &[], "", "gluten free");
        check("Beef hot dogs", &[], "", "vegetarian and vegan");
        check("Hot dogs", &[], "", "vegetarian and vegan and halal");
        check("Turkey bacon", &[], "", "vegetarian and vegan");
        check("Smoked bacon", &[], "", "vegetarian and vegan and halal");
        check("Ginger ale", &[], "", "");
        check("Pale ale", &[], "", "gluten free and halal");
        check("White wine vinegar", &[], "", "");
        check("Wildflower honey", &[], "", "vegan");
        check("Honeydew melon", &[], "", "");
        check("Wasabi peas", &[], "", "");
    }

    #[test]
    fn a_name_denies_what_its_category_says() {
        check("Vegan smoked slices", &["dairies", "cheeses"], "", "");
        check("Oat drink", &["dairy substitutes", "milk substitutes"], "", "");
        check("Brown rice", &["cereals and potatoes", "cereals and their products", "rices"], "", "");
        check("Gluten free bread", &["breads"], "", "");
        check("Rustic loaf", &["cereals", "breads"], "", "gluten free");
        check("Vegetarian sausages", &["sausages"], "", "");
        check("Non-alcoholic beer", &["beers"], "", "gluten free");
        check("Dairy-free ice cream", &["ice creams"], "", "");
    }

    #[test]
    fn ingredients_count_whatever_the_name_says() {
        check("Vegan cookie", &[], "oats, sugar, skimmed milk powder", "vegan and gluten free and dairy free");
        check("Crunch", &[], "corn, sugar, salt. May contain traces of milk and peanuts.", "dairy free and nut free");
        check("Gummies", &[], "glucose, gelatin, citric acid", "vegetarian and vegan and halal");
        check("Bar", &[], "dates, no nuts, gluten-free oats", "");
    }

    #[test]
    fn what_names_the_thing_decides_on_age() {
        for (name, path, restricted) in [
            ("Chardonnay", "white wines", true),
            ("Malt liquor", "", true),
            ("Bourbon vanilla ice cream", "ice creams", false),
            ("Red wine vinegar", "vinegars", false),
            ("Menthol", "cigarettes", true),
            ("Alcohol free lager", "beers", false),
            ("Root beer", "sodas", false),
        ] {
            assert_eq!(facts_of(name, &[path.to_owned()], "").age_restricted, restricted, "{name}");
        }
    }
}
